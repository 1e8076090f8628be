"""Compares ONNX files as messages, by the definition that the `onnx` package ships.

    message_equality.py make FOLDER           writes models in which every field of every message is set
    message_equality.py compare A B [A B ...] fails unless each A and B decode to equal messages
    message_equality.py enums                 prints the enumerations, a line for each value
"""

import pathlib
import sys

import onnx
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.unknown_fields import UnknownFieldSet

# A message may contain its own type; two levels show that the inner one survives too.
NESTING = 2

VALUES = {
    Field.CPPTYPE_INT32: -3,
    Field.CPPTYPE_INT64: -(2**40) - 5,
    Field.CPPTYPE_UINT64: 2**63 + 7,
    Field.CPPTYPE_FLOAT: -1.5,
    Field.CPPTYPE_DOUBLE: 1e300,
}
# Set and equal to what a missing field reads as: only the presence tells them apart.
DEFAULTS = dict.fromkeys(VALUES, 0)


class Filler:
    """Fills messages by reflection and notes which fields it has set."""

    def __init__(self, defaults):
        self.defaults = defaults
        self.filled = set()

    def scalar(self, field, variant):
        if field.cpp_type == Field.CPPTYPE_ENUM:
            values = field.enum_type.values
            return values[0 if self.defaults else variant % len(values)].number
        if field.type == Field.TYPE_BYTES:
            return b"" if self.defaults else b"\x00\xff" + field.name.encode()
        if field.type == Field.TYPE_STRING:
            return "" if self.defaults else f"{field.full_name} é"
        # No other kind of field is expected: a new one is a KeyError here.
        return (DEFAULTS if self.defaults else VALUES)[field.cpp_type]

    def message(self, message, above, variant=0):
        """Sets every field, of a oneof the member number `variant`."""
        descriptor = message.DESCRIPTOR
        above = [*above, descriptor.full_name]
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if oneof and oneof.fields[variant % len(oneof.fields)] is not field:
                continue
            is_message = field.type == Field.TYPE_MESSAGE
            if is_message and above.count(field.message_type.full_name) >= NESTING:
                continue
            self.filled.add(field.full_name)
            target = getattr(message, field.name)
            if not is_message and field.is_repeated:
                target.extend([self.scalar(field, variant), self.scalar(field, variant + 1)])
            elif not is_message:
                setattr(message, field.name, self.scalar(field, variant))
            elif field.is_repeated:
                for number in range(self.variants(field.message_type, above)):
                    self.message(target.add(), above, number)
            else:
                target.SetInParent()
                self.message(target, above, variant)

    def variants(self, descriptor, above):
        """How many copies show every member of its oneofs and every value of its enumerations; one when nested."""
        if descriptor.full_name in above:
            return 1
        oneofs = [len(oneof.fields) for oneof in descriptor.oneofs]
        enums = [len(field.enum_type.values) for field in descriptor.fields if field.enum_type]
        return max([2, *oneofs, *enums])


def every_field(messages):
    for message in messages:
        yield from (field.full_name for field in message.fields)
        yield from every_field(message.nested_types)


def make(folder):
    """Writes `filled.onnx` and, with every field present but equal to its default, `defaults.onnx`."""
    expected = set(every_field(onnx.ModelProto.DESCRIPTOR.file.message_types_by_name.values()))
    for name, defaults in (("filled", False), ("defaults", True)):
        filler = Filler(defaults)
        model = onnx.ModelProto()
        filler.message(model, [])
        missed = sorted(expected - filler.filled)
        if missed:
            sys.exit(f"{name}: never set: {', '.join(missed)}")
        pathlib.Path(folder, f"{name}.onnx").write_bytes(model.SerializeToString())
    print(f"{len(expected)} fields set")


def unknown(message):
    """Names of the messages that hold fields which the definition lacks."""
    if len(UnknownFieldSet(message)):
        yield message.DESCRIPTOR.full_name
    for field, value in message.ListFields():
        if field.type == Field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from unknown(inner)


def difference(a, b, path):
    """The path of the first field of `a` that is different in `b`."""
    for field in a.DESCRIPTOR.fields:
        inside = f"{path}.{field.name}"
        one, other = getattr(a, field.name), getattr(b, field.name)
        is_message = field.type == Field.TYPE_MESSAGE
        if field.is_repeated:
            if len(one) != len(other):
                return f"{inside}: {len(one)} elements became {len(other)}"
            for number, pair in enumerate(zip(one, other)):
                if pair[0] != pair[1]:
                    place = f"{inside}[{number}]"
                    return difference(*pair, place) if is_message else f"{place}: {pair[0]!r} became {pair[1]!r}"
        elif a.HasField(field.name) != b.HasField(field.name):
            return f"{inside}: {'lost' if a.HasField(field.name) else 'added'}"
        elif one != other:
            return difference(one, other, inside) if is_message else f"{inside}: {one!r} became {other!r}"
    return path


def enums():
    """Prints name, value's name and number of every enumeration."""
    file = onnx.ModelProto.DESCRIPTOR.file
    nested = [e for message in file.message_types_by_name.values() for e in message.enum_types]
    for enum in [*file.enum_types_by_name.values(), *nested]:
        for value in enum.values:
            print(enum.name, value.name, value.number)


def compare(paths):
    """Prints how many pairs are equal; exits with the names of those that are not."""
    if not paths or len(paths) % 2:
        sys.exit("compare takes pairs of files")
    problems = []
    for before, after in zip(paths[::2], paths[1::2]):
        a, b = onnx.ModelProto(), onnx.ModelProto()
        a.ParseFromString(pathlib.Path(before).read_bytes())
        b.ParseFromString(pathlib.Path(after).read_bytes())
        strange = sorted(set(unknown(a)) | set(unknown(b)))
        if strange:
            problems.append(f"{before}: unknown fields in {', '.join(strange)}")
        elif not a.HasField("graph"):
            problems.append(f"{before}: no graph, so nothing was compared")
        elif a != b:
            problems.append(f"{before}: differs after reading and writing: {difference(a, b, 'model')}")
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(paths) // 2} pairs equal")


def main(arguments):
    match arguments:
        case ["make", folder]:
            make(folder)
        case ["compare", *paths]:
            compare(paths)
        case ["enums"]:
            enums()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
