//! Greedy decoding with ONNX Runtime only. Caches are bound to buffers of the runtime.
//!
//! ```text
//! cargo run --release --example generate -- libonnxruntime.so model.onnx 504,3575,282,4649,314 16
//! ```
//!
//! The program reads the shape of every cache from the session, so that it runs a model and its rewrite alike. Caches
//! must be fp32, int8 or uint8, and the inputs those of common decoder exports. It prints the generated token ids.

use std::collections::BTreeMap;
use std::error::Error;

use ort::memory::Allocator;
use ort::session::Session;
use ort::value::{DynValue, Tensor, TensorElementType, ValueType};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, model, ids, count] = arguments.as_slice() else {
        return Err("usage: generate LIBRARY MODEL IDS TOKENS".into());
    };
    let environment = ort::init_from(library)?.build()?;
    let mut session = Session::builder(&environment)?.commit_from_file(model)?;
    let ids: Vec<i64> = ids
        .split(',')
        .map(|id| id.trim().parse())
        .collect::<Result<_, _>>()?;
    let made = generate(&mut session, ids, count.parse()?)?;
    let made: Vec<String> = made.iter().map(i64::to_string).collect();
    #[allow(clippy::print_stdout)]
    {
        println!("{}", made.join(","));
    }
    Ok(())
}

fn generate(
    session: &mut Session,
    prompt: Vec<i64>,
    count: usize,
) -> Result<Vec<i64>, Box<dyn Error>> {
    let names = |outlets: &[ort::value::Outlet]| -> Vec<String> {
        outlets.iter().map(|o| o.name().to_owned()).collect()
    };
    let (inputs, outputs) = (names(session.inputs()), names(session.outputs()));
    let mut caches = empty_caches(session)?;
    let (mut step, mut length, mut made) = (prompt, 0, Vec::new());
    while made.len() < count {
        let tokens = step.len();
        let positions: Vec<i64> = (length..length + tokens).map(|p| p as i64).collect();
        length += tokens;
        let feeds = [
            ("input_ids", step),
            ("attention_mask", vec![1; length]),
            ("position_ids", positions),
        ];
        let mut binding = session.create_binding()?;
        let memory = session.allocator().memory_info();
        for (name, values) in feeds {
            if inputs.iter().any(|i| i == name) {
                let shape = [1, values.len()];
                binding.bind_input(name, &Tensor::from_array((shape, values))?)?;
            }
        }
        for (name, cache) in &caches {
            binding.bind_input(name, cache)?;
        }
        for name in &outputs {
            binding.bind_output_to_device(name, memory)?;
        }
        let mut results = session.run_binding(&binding)?;
        // The present becomes the past of the next step without a copy in this program.
        for (past, cache) in &mut caches {
            let present = past.replace("past_key_values", "present");
            *cache = results
                .remove(&present)
                .ok_or("a cache does not come back")?;
        }
        let logits = results.remove("logits").ok_or("no logits")?;
        let (shape, values) = logits.try_extract_tensor::<f32>()?;
        let vocabulary = usize::try_from(*shape.last().ok_or("scalar logits")?)?;
        let last = values.chunks_exact(vocabulary).next_back();
        let best = last.into_iter().flatten().enumerate();
        // Ties go to the first token.
        let best = best.fold((0, f32::NEG_INFINITY), |best, (id, &logit)| {
            if logit > best.1 { (id, logit) } else { best }
        });
        made.push(best.0 as i64);
        step = vec![best.0 as i64];
    }
    Ok(made)
}

/// An empty cache [1, heads, 0, width] for every past input.
fn empty_caches(session: &Session) -> Result<BTreeMap<String, DynValue>, Box<dyn Error>> {
    let mut caches = BTreeMap::new();
    for input in session.inputs() {
        let ValueType::Tensor { ty, shape, .. } = input.dtype() else {
            continue;
        };
        if let (true, [_, heads, _, width]) = (input.name().starts_with("past"), &shape[..]) {
            let shape = [1, *heads, 0, *width];
            let empty = match ty {
                TensorElementType::Int8 => {
                    Tensor::<i8>::new(&Allocator::default(), shape)?.into_dyn()
                }
                TensorElementType::Uint8 => {
                    Tensor::<u8>::new(&Allocator::default(), shape)?.into_dyn()
                }
                _ => Tensor::<f32>::new(&Allocator::default(), shape)?.into_dyn(),
            };
            caches.insert(input.name().to_owned(), empty);
        }
    }
    Ok(caches)
}
