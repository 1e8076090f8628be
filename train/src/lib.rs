//! Reverse-mode differentiation of the ONNX graph of a decoder, and training of its factors.
//!
//! A [`program::Program`] is the part of a graph that the logits depend on, with attention operators expanded into
//! primitives. It runs forward on [`candle_core`] tensors, and [`program::Trace::backward`] propagates gradients from
//! the logits to the trained initializers. candle's own differentiation is not used: it computes gradients of frozen
//! weights too and keeps every value; here frozen weights cost nothing, and only values that the backward pass needs
//! are kept.
//!
//! A graph with one product, y = x w, trained to predict token 0:
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use candle_core::{Device, Tensor};
//! use gqa2mla_passes::graph::build::node;
//! use gqa2mla_passes::onnx::{GraphProto, TensorProto, ValueInfoProto, stored::Model};
//! use gqa2mla_train::{adamw, loss, program::Program};
//!
//! let weight = TensorProto {
//!     name: Some("w".to_owned()),
//!     dims: vec![1, 2],
//!     data_type: Some(1),
//!     float_data: vec![0.1, 0.2],
//!     ..TensorProto::default()
//! };
//! let graph = GraphProto {
//!     node: vec![node("MatMul", "product", &["x", "w"], &["y"])],
//!     initializer: vec![weight],
//!     input: vec![ValueInfoProto { name: Some("x".to_owned()), ..ValueInfoProto::default() }],
//!     ..GraphProto::default()
//! };
//! let program = Program::compile(&Model::default(), &graph, &["y"], &["w".to_owned()])?;
//! let x = Tensor::new(&[[1f32]], &Device::Cpu)?;
//! let inputs = BTreeMap::from([("x".to_owned(), x)]);
//!
//! let descent = adamw::AdamOptions::new(20, 0.5);
//! let w = Tensor::new(&[[0.1f32, 0.2]], &Device::Cpu)?;
//! let mut tensors = [adamw::Trained::new(w, 1.0)?];
//! let mut losses = Vec::new();
//! for step in 0..20 {
//!     let trace = program.trace(&inputs, &[tensors[0].values.clone()])?;
//!     let loss = loss::next_token(&trace.outputs[0], &[0], &[true])?;
//!     losses.push(loss.mean);
//!     let grads = trace.backward(vec![loss.grad])?;
//!     adamw::step(&mut tensors, grads, &descent, step)?;
//! }
//! assert!(losses[19] < 0.5 * losses[0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod adamw;
pub mod error;
pub mod kernels;
pub mod loss;
pub mod operators;
pub mod product;
pub mod program;
pub mod stored;
