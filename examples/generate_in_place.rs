//! Generates greedily with a model that writes its caches in place: no step copies a cache.
//!
//! ```text
//! gqa2mla rewrite MODEL -o in-place.onnx --cache-io inplace
//! cargo run --release --example generate_in_place -- libonnxruntime.so in-place.onnx 504,3575,282,4649,314 16
//! ```
//!
//! Every past input of such a model has room for the new tokens behind the cached ones, and its present has the same shape. A
//! step binds both to the first S rows of one buffer [1, 1, capacity, r]; the model writes the last T of them. Caches are in
//! single precision. Prints the ids.

use std::error::Error;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::{Shape, Tensor, TensorElementType, TensorRefMut, ValueType};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, model, ids, count] = arguments.as_slice() else {
        return Err("usage: generate_in_place LIBRARY MODEL IDS TOKENS".into());
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

/// The rows [capacity, width] of one cache: the past of a step and its present are views of them.
struct Cache {
    past: String,
    present: String,
    width: usize,
    rows: Vec<f32>,
}

impl Cache {
    /// The caches of the model of `session`, for `capacity` tokens each.
    fn all(session: &Session, capacity: usize) -> Result<Vec<Self>, Box<dyn Error>> {
        let metadata = session.metadata()?;
        let in_place = metadata.custom("gqa2mla.in_place").unwrap_or_default();
        let mut caches = Vec::new();
        for input in session
            .inputs()
            .iter()
            .filter(|i| i.name().starts_with("past"))
        {
            let past = input.name().to_owned();
            let ValueType::Tensor {
                ty: TensorElementType::Float32,
                shape,
                ..
            } = input.dtype()
            else {
                return Err(format!("{past} is no cache in single precision").into());
            };
            if !in_place.lines().any(|name| name == past) {
                return Err(
                    format!("{past} is not written in place: use the example generate").into(),
                );
            }
            let width = usize::try_from(*shape.last().ok_or("a cache without axes")?)?;
            caches.push(Self {
                present: past.replace("past_key_values", "present"),
                past,
                width,
                rows: vec![0.0; capacity * width],
            });
        }
        Ok(caches)
    }

    /// Binds the first `length` rows as past and as present.
    fn bind(&mut self, binding: &mut IoBinding, length: usize) -> Result<(), Box<dyn Error>> {
        let rows = self
            .rows
            .get_mut(..length * self.width)
            .ok_or("the buffer is full")?;
        let memory = MemoryInfo::new(
            AllocationDevice::CPU,
            0,
            AllocatorType::Device,
            MemoryType::Default,
        )?;
        let shape = Shape::new([1, 1, length as i64, self.width as i64]);
        // SAFETY: the pointer is that of a slice with as many elements as the shape says. The slice is not touched between
        // here and the end of the run, and `self.rows`, which is never resized, outlives the binding.
        #[allow(unsafe_code)]
        let view =
            unsafe { TensorRefMut::<f32>::from_raw(memory, rows.as_mut_ptr().cast(), shape)? };
        binding.bind_input(&self.past, &view)?;
        binding.bind_output(&self.present, view)?;
        Ok(())
    }
}

fn generate(
    session: &mut Session,
    mut text: Vec<i64>,
    count: usize,
) -> Result<Vec<i64>, Box<dyn Error>> {
    let inputs: Vec<String> = session
        .inputs()
        .iter()
        .map(|i| i.name().to_owned())
        .collect();
    let (prompt, mut length) = (text.len(), 0);
    let mut caches = Cache::all(session, prompt + count)?;
    while text.len() < prompt + count {
        let new = text.get(length..).unwrap_or_default().to_vec();
        let positions: Vec<i64> = (length..text.len()).map(|p| p as i64).collect();
        length = text.len();
        let feeds = [
            ("input_ids", new),
            ("attention_mask", vec![1; length]),
            ("position_ids", positions),
        ];
        let mut binding = session.create_binding()?;
        for (name, values) in feeds {
            if inputs.iter().any(|i| i == name) {
                let shape = [1, values.len()];
                binding.bind_input(name, &Tensor::from_array((shape, values))?)?;
            }
        }
        for cache in &mut caches {
            cache.bind(&mut binding, length)?;
        }
        binding.bind_output_to_device("logits", session.allocator().memory_info())?;
        let results = session.run_binding(&binding)?;
        let logits = results.get("logits").ok_or("no logits")?;
        let (shape, values) = logits.try_extract_tensor::<f32>()?;
        let vocabulary = usize::try_from(*shape.last().ok_or("scalar logits")?)?;
        let last = values.chunks_exact(vocabulary).next_back();
        let best = last.into_iter().flatten().enumerate();
        // The first of equals, as everywhere else.
        let best = best.fold((0, f32::NEG_INFINITY), |best, (id, &logit)| {
            if logit > best.1 { (id, logit) } else { best }
        });
        text.push(best.0 as i64);
    }
    Ok(text.split_off(prompt))
}
