"""Sends the same prompts to two servers, and compares their answers.

    python examples/serve/client.py http://127.0.0.1:8000/v1/completions http://127.0.0.1:8001/v1/completions "The capital of France is"

The exit code is 1 if an answer differs. With one server, it prints the answers.
"""

import json
import sys
import urllib.error
import urllib.request


def ask(server, prompt, count=32):
    body = json.dumps({"prompt": prompt, "max_tokens": count}).encode()
    request = urllib.request.Request(server, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["choices"][0]["text"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{server}: {json.load(error)['error']}")
    except urllib.error.URLError as error:
        raise SystemExit(f"{server}: {error.reason}")


def main():
    servers = [a for a in sys.argv[1:] if a.startswith("http")]
    prompts = [a for a in sys.argv[1:] if not a.startswith("http")]
    if not servers or not prompts:
        raise SystemExit(__doc__)
    same = True
    for prompt in prompts:
        answers = [ask(server, prompt) for server in servers]
        alike = len(set(answers)) == 1
        same &= alike
        print(json.dumps({"prompt": prompt, "same": alike, "answers": answers[:1] if alike else answers}))
    raise SystemExit(0 if same else 1)


main()
