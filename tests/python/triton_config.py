"""Reads two config.pbtxt as Triton does, and prints which tensors' fields differ: python triton_config.py A B"""

import json
import sys

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2


def read(path):
    with open(path) as file:
        return text_format.Parse(file.read(), model_config_pb2.ModelConfig())


def plain(field, value):
    if not field.is_repeated:
        return value
    if not field.message_type:
        return list(value)
    return [{"name": one.name, "dims": list(one.dims)} for one in value]


def differing(a, b, where, found):
    for field in a.DESCRIPTOR.fields:
        x, y = getattr(a, field.name), getattr(b, field.name)
        if x == y:
            continue
        if field.message_type and field.is_repeated and len(x) == len(y):
            for number, (one, other) in enumerate(zip(x, y)):
                differing(one, other, f"{where}{field.name}[{number}].", found)
        elif field.message_type and not field.is_repeated:
            differing(x, y, f"{where}{field.name}.", found)
        else:
            found[where + field.name] = [plain(field, v) for v in (x, y)]
    return found


print(json.dumps(differing(read(sys.argv[1]), read(sys.argv[2]), "", {})))
