//! What the inputs of a model are for.

use super::*;
use gqa2mla::runtime::given::{GivenInput, GivenValue};
use gqa2mla::validate::scenario::{ScenarioOptions, scenarios};

#[test]
fn caches_are_paired_by_name_in_any_order_and_spelling() {
    for (past, present) in [
        ("past_key_values.{}.{}", "present.{}.{}"),
        ("past_{}_{}", "present_{}_{}"),
        ("cache.{}.decoder.{}", "new_cache.{}.decoder.{}"),
    ] {
        let spell = |pattern: &str, layer: &str, part: &str| {
            pattern.replacen("{}", layer, 1).replacen("{}", part, 1)
        };
        let mut inputs = vec![port("tokens", INT64, &["b", "s"])];
        let mut outputs = vec![port("logits", FLOAT, &["b", "s", "9"])];
        for part in ["key", "value"] {
            for layer in ["0", "1", "10"] {
                inputs.push(port(
                    &spell(past, layer, part),
                    FLOAT,
                    &["b", "1", "p", "w"],
                ));
                outputs.insert(
                    0,
                    port(
                        &spell(present, layer, part),
                        FLOAT,
                        &["b", "1", "p + s", "w"],
                    ),
                );
            }
        }
        let interface = Interface::of(&inputs, &outputs, &[]).unwrap();
        assert_eq!(interface.caches.len(), 6);
        for cache in &interface.caches {
            let tail = cache
                .past
                .split_once("alues")
                .map_or(cache.past.as_str(), |(_, tail)| tail);
            let digits = |text: &str| {
                text.chars()
                    .filter(char::is_ascii_digit)
                    .collect::<String>()
            };
            assert_eq!(digits(tail), digits(&cache.present), "{cache:?}");
            assert_eq!(
                tail.contains("key"),
                cache.present.contains("key"),
                "{cache:?}"
            );
            assert_eq!((cache.length_axis, cache.open_axes()), (Some(2), vec![3]));
        }
    }
}

#[test]
fn a_latent_cache_of_rank_3_grows_along_its_second_axis() {
    let inputs = [
        port("input_ids", INT64, &["b", "s"]),
        port("past.0", FLOAT, &["b", "p", "24"]),
    ];
    let outputs = [
        port("present.0", FLOAT, &["b", "p + s", "24"]),
        port("scores", FLOAT, &["b", "s", "9"]),
    ];
    let interface = Interface::of(&inputs, &outputs, &[]).unwrap();
    assert_eq!(
        (interface.logits.as_str(), interface.caches[0].length_axis),
        ("scores", Some(1))
    );
    assert_eq!(interface.inputs[1].role, Role::Past(0));
}

#[test]
fn a_state_of_one_size_goes_from_step_to_step_and_does_not_grow() {
    let (mut inputs, mut outputs) = llama();
    inputs.push(port("past.7.conv", FLOAT, &["batch", "64", "2"]));
    outputs.push(port("present.7.conv", FLOAT, &["batch", "64", "2"]));
    let interface = Interface::of(&inputs, &outputs, &[]).unwrap();
    let state = interface.caches.last().unwrap();
    assert_eq!(
        (state.present.as_str(), state.length_axis),
        ("present.7.conv", None)
    );
    assert_eq!(state.shape(3, 100), Some(vec![3, 64, 2]));
}

#[test]
fn the_factors_of_an_adapter_are_given_and_a_counter_is_not_guessed() {
    let (mut inputs, outputs) = llama();
    inputs.push(port("q_proj.lora_A.weight", FLOAT, &["40", "lora_r"]));
    let interface = Interface::of(&inputs, &outputs, &[]).unwrap();
    assert_eq!(interface.inputs.last().unwrap().role, Role::Given);
}

/// Of these, any values do; a cache that no output continues would have to be carried on.
#[test]
fn segment_ids_flags_and_pixels_are_filled_and_fixed_sizes_are_kept() {
    let (mut inputs, outputs) = llama();
    let ids = inputs[0].dims.clone();
    let segments = Port {
        dims: ids,
        ..port("token_type_ids", INT64, &[])
    };
    inputs.extend([
        segments,
        port("is_first", BOOL, &["1"]),
        port("pixel_values", FLOAT, &["1", "3", "8", "8"]),
    ]);
    let interface = Interface::of(&inputs, &outputs, &[]).unwrap();
    interface.check_fed().unwrap();
    let roles: Vec<Role> = interface
        .inputs
        .iter()
        .rev()
        .take(3)
        .map(|i| i.role)
        .collect();
    assert_eq!(roles, [Role::Given; 3]);
    inputs.push(port("past_of_another.key", FLOAT, &["b", "1", "p", "4"]));
    assert!(
        Interface::of(&inputs, &outputs, &[])
            .unwrap()
            .check_fed()
            .is_err()
    );

    // One token at a time, one row.
    inputs.pop();
    inputs[0].dims = vec![AxisSize::Fixed(1); 2];
    let interface = Interface::of(&inputs, &outputs, &[]).unwrap();
    assert_eq!(
        (interface.fixed_batch, interface.fixed_length()),
        (Some(1), Some(1))
    );
    let options = ScenarioOptions {
        vocabulary: 9,
        given: None,
        seed: 0,
        right_padded_only: false,
    };
    let all = scenarios(&interface, &options);
    let lengths: Vec<usize> = all
        .iter()
        .flat_map(|s| &s.steps)
        .map(|s| s.length)
        .collect();
    assert_eq!((all.len(), lengths), (1, vec![1; 14]));
}

#[test]
fn an_input_that_fits_no_role_is_named_and_fed_what_the_user_says() {
    let (mut inputs, outputs) = llama();
    inputs.push(port("sequence_number", INT64, &[]));
    let interface = Interface::of(&inputs, &outputs, &[]).unwrap();
    let error = interface.check_fed().unwrap_err();
    assert!(
        matches!(&error, ValidateError::Unfed { name, .. } if name == "sequence_number"),
        "{error}"
    );
    let given = |name: &str| GivenInput {
        name: name.to_owned(),
        value: GivenValue::Everywhere(7.0),
    };
    let fed = interface.clone().fed(&[given("sequence_number")]);
    let fed = fed.unwrap();
    fed.check_fed().unwrap();
    assert_eq!(fed.inputs.last().unwrap().role, Role::Given);
    let error = interface.fed(&[given("nothing")]).unwrap_err();
    assert!(
        error.to_string().contains("no input of this name"),
        "{error}"
    );
}
