"""Serves a folder of onnxruntime-genai over HTTP.

    pip install onnxruntime-genai==0.18.0
    python examples/serve/server.py FOLDER --port 8000

POST /v1/completions takes {"prompt": ..., "max_tokens": ...} and returns the greedy continuation in the format of OpenAI's
interface. FOLDER can be an export of the model builder, or its rewrite by gqa2mla: the program is the same for both. With
--port 0 the system chooses a port. The address is printed when the model is loaded.
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, HTTPServer

import onnxruntime_genai as genai


class Completions:
    """A model that answers one request at a time."""

    def __init__(self, folder):
        self.model = genai.Model(folder)
        self.tokenizer = genai.Tokenizer(self.model)

    def answer(self, prompt, count):
        tokens = self.tokenizer.encode(prompt)
        params = genai.GeneratorParams(self.model)
        length = len(tokens) + count
        params.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = genai.Generator(self.model, params)
        generator.append_tokens(tokens)
        while not generator.is_done():
            generator.generate_next_token()
        made = generator.get_sequence(0)[len(tokens) :]
        usage = {"prompt_tokens": len(tokens), "completion_tokens": len(made)}
        choice = {"index": 0, "text": self.tokenizer.decode(made), "finish_reason": "length"}
        return {"object": "text_completion", "choices": [choice], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    completions = None

    def do_POST(self):
        if self.path != "/v1/completions":
            return self.reply(404, {"error": f"nothing is served at {self.path}: POST to /v1/completions"})
        try:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt, count = asked["prompt"], int(asked.get("max_tokens", 16))
            if not isinstance(prompt, str) or not prompt or count < 1:
                raise ValueError("prompt is a text, and max_tokens at least 1")
        except (KeyError, TypeError, ValueError) as error:
            return self.reply(400, {"error": f"expected a prompt and max_tokens as JSON: {error}"})
        self.reply(200, self.completions.answer(prompt, count))

    def reply(self, status, told):
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("folder")
    arguments.add_argument("--port", type=int, default=8000)
    given = arguments.parse_args()
    Handler.completions = Completions(given.folder)
    server = HTTPServer(("127.0.0.1", given.port), Handler)
    print(f"http://127.0.0.1:{server.server_port}/v1/completions", flush=True)
    server.serve_forever()


main()
