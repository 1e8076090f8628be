"""Writes arithmetic word problems as JSON lines of prompt and answer: sums and differences of numbers with three digits.

    python problems.py --count 600 --seed 0 > problems.jsonl
"""

import argparse
import json
import random

NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "June"]
THINGS = ["apples", "books", "coins", "cups", "eggs", "keys", "maps", "pens", "shells", "stamps"]
MORE = ["buys {b} more", "finds {b} more", "gets {b} more"]
LESS = ["gives away {b}", "loses {b}", "sells {b}"]


def problem(draw):
    """One problem: a prompt that ends in "Answer:", and the answer, a number and the end of the text."""
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    a, b = draw.randint(100, 999), draw.randint(100, 999)
    if draw.random() < 0.5:
        done, result = draw.choice(MORE), a + b
    else:
        a, b = max(a, b), min(a, b)
        done, result = draw.choice(LESS), a - b
    prompt = f"{name} has {a} {thing} and {done.format(b=b)}. How many {thing} does {name} have now? Answer:"
    return {"prompt": prompt, "answer": f" {result}\n"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    for _ in range(options.count):
        print(json.dumps(problem(draw)))


if __name__ == "__main__":
    main()
