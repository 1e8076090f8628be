//! Triton's ONNX Runtime backend: `config.pbtxt` repeats the type and the shape of every input and output, and of the
//! states that the server keeps for a sequence. The server reads caches that the file does not list from the model.

use std::collections::BTreeMap;
use std::ops::Range;

use gqa2mla_passes::onnx::tensor_proto::DataType;

use crate::runtime::tensor::ElementType;
use crate::serving::config::Edit;
use crate::serving::error::ServingError;
use crate::serving::latent::Latent;
use crate::serving::stack::Stack;
use crate::validate::port::{AxisSize, Port};

/// Fields whose value is the name of a tensor.
const NAMES: [&str; 4] = ["name", "input_name", "output_name", "key"];
/// Largest nesting depth of messages; the protocol has three levels.
const DEEPEST: usize = 16;

pub fn edit(text: &str, latent: &Latent) -> Result<(String, Vec<Edit>), ServingError> {
    let file = Stack::Triton.file();
    let fields = parse(text)?;
    let mut caches = BTreeMap::new();
    for (before, cache) in latent.before.caches.iter().zip(&latent.after.caches) {
        let rounded = match cache.element {
            element if element == before.element => None,
            ElementType::I8 => Some(DataType::Int8),
            ElementType::U8 => Some(DataType::Uint8),
            _ => None,
        };
        let new = NewCache {
            sizes: std::array::from_fn(|axis| match cache.dims.get(axis) {
                _ if cache.dims == before.dims || cache.dims.len() != 4 => None,
                _ if axis == cache.batch_axis || Some(axis) == cache.length_axis => None,
                Some(AxisSize::Fixed(size)) => Some(*size),
                _ => None,
            }),
            kind: rounded.map(|element| kind(element.into())),
        };
        caches.insert(cache.past.as_str(), new);
        caches.insert(cache.present.as_str(), new);
    }
    let mut changes = Vec::new();
    find(&fields, None, &caches, &mut changes).map_err(failed)?;
    changes.sort_by_key(|c| c.range.start);
    let mut edited = text.to_owned();
    let mut edits = Vec::new();
    for change in changes.iter().rev() {
        edited.replace_range(change.range.clone(), &change.new);
    }
    for change in changes {
        edits.push(Edit {
            file: file.to_owned(),
            key: change.key,
            old: text.get(change.range).map(str::to_owned),
            new: change.new,
        });
    }
    Ok((edited, edits))
}

/// Checks that `text` is a message in protobuf's text format.
pub fn check(text: &str) -> Result<(), ServingError> {
    parse(text).map(|_| ())
}

fn parse(text: &str) -> Result<Vec<Field>, ServingError> {
    let mut parser = Parser { text, at: 0 };
    parser.message(0).map_err(|reason| {
        let line = text.get(..parser.at).unwrap_or(text).matches('\n').count() + 1;
        failed(format!("line {line}: {reason}"))
    })
}

fn failed(detail: String) -> ServingError {
    ServingError::Config {
        file: Stack::Triton.file().to_owned(),
        detail,
    }
}

/// Largest batch size of generated configurations, if the model supports batches.
const BATCH: usize = 8;

/// Generates a configuration for the rewritten model. If the first axis of every input and output is the batch,
/// batching is enabled and this axis is omitted from the shapes, as Triton requires.
pub fn made(latent: &Latent) -> (String, Vec<Edit>) {
    let (inputs, outputs) = &latent.ports;
    let open =
        |port: &Port| port.dims.len() > 1 && !matches!(port.dims.first(), Some(AxisSize::Fixed(_)));
    let mut caches = latent.after.caches.iter();
    let first = caches.all(|cache| cache.batch_axis == 0);
    let batch = match first && inputs.iter().chain(outputs).all(open) {
        true => BATCH,
        false => 0,
    };
    let ports = |ports: &[Port]| -> String {
        let one = |port: &Port| {
            let dims = port
                .dims
                .iter()
                .skip(usize::from(batch > 0))
                .map(|dim| match dim {
                    AxisSize::Fixed(extent) => extent.to_string(),
                    AxisSize::Symbol(_) | AxisSize::Unknown => "-1".to_owned(),
                });
            let dims: Vec<String> = dims.collect();
            let (name, kind) = (&port.name, kind(port.elem_type));
            format!(
                "  {{ name: {name:?} data_type: {kind} dims: [ {} ] }}",
                dims.join(", ")
            )
        };
        ports.iter().map(one).collect::<Vec<_>>().join(",\n")
    };
    let text = format!(
        "backend: \"onnxruntime\"\ndefault_model_filename: {:?}\nmax_batch_size: {batch}\ninput [\n{}\n]\noutput [\n{}\n]\n",
        latent.file,
        ports(inputs),
        ports(outputs)
    );
    let edit = Edit {
        file: Stack::Triton.file().to_owned(),
        key: "max_batch_size".to_owned(),
        old: None,
        new: batch.to_string(),
    };
    (text, vec![edit])
}

/// Triton's name of the ONNX element type `elem_type`.
fn kind(elem_type: i32) -> &'static str {
    match DataType::try_from(elem_type) {
        Ok(DataType::Float16) => "TYPE_FP16",
        Ok(DataType::Bfloat16) => "TYPE_BF16",
        Ok(DataType::Double) => "TYPE_FP64",
        Ok(DataType::Int64) => "TYPE_INT64",
        Ok(DataType::Int32) => "TYPE_INT32",
        Ok(DataType::Int8) => "TYPE_INT8",
        Ok(DataType::Uint8) => "TYPE_UINT8",
        Ok(DataType::Bool) => "TYPE_BOOL",
        _ => "TYPE_FP32",
    }
}

/// The shape and the type of a cache in the rewritten model.
#[derive(Debug, Clone, Copy)]
struct NewCache {
    /// The sizes of its four axes; `None` for the batch, the length, and sizes that do not change.
    sizes: [Option<usize>; 4],
    /// The element type, if the cache holds integers; other caches keep their type.
    kind: Option<&'static str>,
}

/// A number or a type in the file that is replaced.
struct Change {
    key: String,
    range: Range<usize>,
    new: String,
}

/// One field of a message in protobuf's text format.
struct Field {
    name: String,
    value: PbtxtValue,
}

enum PbtxtValue {
    /// A number, string or identifier, with its range in the text.
    Scalar(Range<usize>, String),
    Message(Vec<Field>),
    List(Vec<PbtxtValue>),
}

/// Finds `dims` and `data_type` of every message that names a cache, and of the messages in it.
fn find(
    fields: &[Field],
    outer: Option<(&str, NewCache)>,
    caches: &BTreeMap<&str, NewCache>,
    changes: &mut Vec<Change>,
) -> Result<(), String> {
    let own = fields.iter().find_map(|field| match &field.value {
        PbtxtValue::Scalar(_, name) if NAMES.contains(&field.name.as_str()) => caches
            .get_key_value(name.as_str())
            .map(|(k, new)| (*k, *new)),
        _ => None,
    });
    let cache = own.or(outer);
    if let Some((name, new)) = cache {
        if fields.iter().any(|f| f.name == "reshape") {
            return Err(format!(
                "'{name}' is reshaped by the server, which is not followed"
            ));
        }
        let dims = fields.iter().filter(|f| f.name == "dims");
        let dims: Vec<&PbtxtValue> = dims.flat_map(|f| scalars(&f.value)).collect();
        // The first axis, the batch, is left out if the server batches.
        let left_out = match dims.len() {
            0 | 4 => 0,
            3 => 1,
            other => return Err(format!("'{name}' has {other} dims, expected 3 or 4")),
        };
        let sizes = new.sizes.iter().skip(left_out);
        for (at, (value, size)) in dims.into_iter().zip(sizes).enumerate() {
            if let Some(size) = size {
                let key = format!("{name}.dims[{at}]");
                changes.extend(change(value, key, size.to_string()));
            }
        }
    }
    if let Some((name, kind)) = cache.and_then(|(name, new)| Some((name, new.kind?))) {
        for field in fields.iter().filter(|f| f.name == "data_type") {
            let key = format!("{name}.data_type");
            changes.extend(change(&field.value, key, kind.to_owned()));
        }
    }
    for field in fields {
        for message in messages(&field.value) {
            find(message, cache, caches, changes)?;
        }
    }
    Ok(())
}

/// The replacement of the scalar `value` by `new`; `None` if they are equal.
fn change(value: &PbtxtValue, key: String, new: String) -> Option<Change> {
    match value {
        PbtxtValue::Scalar(range, old) if *old != new => Some(Change {
            key,
            range: range.clone(),
            new,
        }),
        _ => None,
    }
}

fn scalars(value: &PbtxtValue) -> Vec<&PbtxtValue> {
    match value {
        PbtxtValue::List(values) => values.iter().flat_map(scalars).collect(),
        PbtxtValue::Scalar(..) => vec![value],
        PbtxtValue::Message(_) => Vec::new(),
    }
}

fn messages(value: &PbtxtValue) -> Vec<&[Field]> {
    match value {
        PbtxtValue::List(values) => values.iter().flat_map(messages).collect(),
        PbtxtValue::Message(fields) => vec![fields],
        PbtxtValue::Scalar(..) => Vec::new(),
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl Parser<'_> {
    /// Parses fields up to the end of the text, or to the closing brace of the message at `depth`.
    fn message(&mut self, depth: usize) -> Result<Vec<Field>, String> {
        if depth > DEEPEST {
            return Err("messages lie too deep in each other".to_owned());
        }
        let mut fields = Vec::new();
        loop {
            self.skip(&[',', ';']);
            match self.peek() {
                None if depth == 0 => return Ok(fields),
                Some('}' | '>') if depth > 0 => {
                    self.at += 1;
                    return Ok(fields);
                }
                Some(c) if c.is_alphanumeric() || c == '_' => {}
                found => return Err(unexpected(found, "a field's name")),
            }
            let (_, name) = self.word();
            self.skip(&[]);
            if self.peek() == Some(':') {
                self.at += 1;
            }
            let value = self.value(depth)?;
            fields.push(Field { name, value });
        }
    }

    fn value(&mut self, depth: usize) -> Result<PbtxtValue, String> {
        self.skip(&[]);
        match self.peek() {
            Some('{' | '<') => {
                self.at += 1;
                Ok(PbtxtValue::Message(self.message(depth + 1)?))
            }
            Some('[') => {
                self.at += 1;
                let mut values = Vec::new();
                loop {
                    self.skip(&[',']);
                    match self.peek() {
                        Some(']') => {
                            self.at += 1;
                            return Ok(PbtxtValue::List(values));
                        }
                        Some('[') | None => return Err(unexpected(self.peek(), "a value or ]")),
                        Some(_) => values.push(self.value(depth)?),
                    }
                }
            }
            Some(quote @ ('"' | '\'')) => self.string(quote),
            Some(c) if c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '+') => {
                let (range, word) = self.word();
                Ok(PbtxtValue::Scalar(range, word))
            }
            found => Err(unexpected(found, "a value")),
        }
    }

    fn string(&mut self, quote: char) -> Result<PbtxtValue, String> {
        let start = self.at;
        let mut escaped = false;
        let rest = self.text.get(start + 1..).unwrap_or_default();
        for (offset, c) in rest.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                _ if c == quote => {
                    self.at = start + 1 + offset + 1;
                    let inside = rest.get(..offset).unwrap_or_default().to_owned();
                    return Ok(PbtxtValue::Scalar(start..self.at, inside));
                }
                _ => {}
            }
        }
        Err("a string has no end".to_owned())
    }

    fn word(&mut self) -> (Range<usize>, String) {
        let start = self.at;
        let rest = self.text.get(start..).unwrap_or_default();
        let part = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        let length = rest.find(|c| !part(c)).unwrap_or(rest.len());
        self.at = start + length;
        let word = rest.get(..length).unwrap_or_default().to_owned();
        (start..self.at, word)
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at..)?.chars().next()
    }

    /// Skips white space, comments and `separators`.
    fn skip(&mut self, separators: &[char]) {
        while let Some(c) = self.peek() {
            if c == '#' {
                let rest = self.text.get(self.at..).unwrap_or_default();
                self.at += rest.find('\n').unwrap_or(rest.len());
            } else if c.is_whitespace() || separators.contains(&c) {
                self.at += c.len_utf8();
            } else {
                return;
            }
        }
    }
}

fn unexpected(found: Option<char>, expected: &str) -> String {
    match found {
        Some(c) => format!("found '{c}', expected {expected}"),
        None => format!("the text ends, expected {expected}"),
    }
}
