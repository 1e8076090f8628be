//! What the inputs of a model are for.

use super::*;

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
        let interface = Interface::of(&inputs, &outputs).unwrap();
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
            assert_eq!((cache.length_axis, cache.open_axes()), (2, vec![3]));
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
    let interface = Interface::of(&inputs, &outputs).unwrap();
    assert_eq!(
        (interface.logits.as_str(), interface.caches[0].length_axis),
        ("scores", 1)
    );
    assert_eq!(interface.inputs[1].role, Role::Past(0));
}

#[test]
fn an_input_that_fits_no_role_is_named() {
    let (mut inputs, outputs) = llama();
    inputs.push(port("total_sequence_length", INT64, &[]));
    let error = Interface::of(&inputs, &outputs).unwrap_err();
    assert!(
        matches!(&error, ValidateError::Input { name, .. } if name == "total_sequence_length"),
        "{error}"
    );
}
