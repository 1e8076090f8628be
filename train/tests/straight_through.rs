//! Rounding, through which gradients pass as if it were not there.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

use candle_core::{Device, Tensor};
use gqa2mla_passes::graph::build::node;
use gqa2mla_train::operators::{Call, find};

fn ints(values: &[i64]) -> Tensor {
    Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
}

#[test]
fn gradients_pass_straight_through_the_nearest_integer() {
    let node = node("Round", "r", &[], &["y"]);
    let x = Tensor::new(&[0.5f32, 1.5, -0.6], &Device::Cpu).unwrap();
    let call = Call {
        node: &node,
        inputs: &[Some(x)],
        tracked: &[true],
    };
    let made = (find(&node).unwrap().run)(&call).unwrap();
    let y: Vec<f32> = made.outputs[0].to_vec1().unwrap();
    assert_eq!(y, [0.0, 2.0, -1.0]);
    let grads = made.pull.unwrap()(&[Some(made.outputs[0].clone())]).unwrap();
    let grads: Vec<f32> = grads[0].as_ref().unwrap().to_vec1().unwrap();
    assert_eq!(grads, y);
}

#[test]
fn gradients_pass_straight_through_rounding_but_not_where_it_is_limited() {
    let node = node("QuantizeLinear", "q", &[], &["y"]);
    let scale = Tensor::from_vec(vec![0.5f32, 0.1], 2, &Device::Cpu).unwrap();
    let x = Tensor::new(&[[0.6f32, 0.26], [100.0, -20.0]], &Device::Cpu).unwrap();
    let inputs = [Some(x), Some(scale), Some(ints(&[0, 0]))];
    let call = Call {
        node: &node,
        inputs: &inputs,
        tracked: &[true, false, false],
    };
    let made = (find(&node).unwrap().run)(&call).unwrap();
    let codes: Vec<Vec<f32>> = made.outputs[0].to_vec2().unwrap();
    assert_eq!(codes, [[1.0, 3.0], [127.0, -128.0]]);
    let ones = made.outputs[0].ones_like().unwrap();
    let grads = made.pull.unwrap()(&[Some(ones)]).unwrap();
    let grads: Vec<Vec<f32>> = grads[0].as_ref().unwrap().to_vec2().unwrap();
    assert_eq!(grads, [[2.0, 10.0], [0.0, 0.0]]);
}

/// The integers, the step and the zero of a tensor that is rounded to 256 levels, as ONNX defines them.
#[test]
fn gradients_pass_straight_through_rounding_to_the_range_of_a_tensor() {
    let node = node("DynamicQuantizeLinear", "q", &[], &["y", "scale", "zero"]);
    let x = Tensor::new(&[0.0f32, 2.0, -3.0, -2.5, 1.34, 0.5], &Device::Cpu).unwrap();
    let call = Call {
        node: &node,
        inputs: &[Some(x)],
        tracked: &[true],
    };
    let made = (find(&node).unwrap().run)(&call).unwrap();
    let codes: Vec<f32> = made.outputs[0].to_vec1().unwrap();
    assert_eq!(codes, [153.0, 255.0, 0.0, 26.0, 221.0, 179.0]);
    let one = |at: usize| made.outputs[at].to_scalar::<f32>().unwrap();
    assert!((one(1) - 5.0 / 255.0).abs() < 1e-7 && one(2) == 153.0);
    let ones = made.outputs[0].ones_like().unwrap();
    let grads = made.pull.unwrap()(&[Some(ones), None, None]).unwrap();
    let grads: Vec<f32> = grads[0].as_ref().unwrap().to_vec1().unwrap();
    assert!(grads.iter().all(|g| (g - 51.0).abs() < 1e-3), "{grads:?}");
}
