//! Caches in the usual order inside a graph that transposes them at its interface.

use super::*;

/// The fixture behind transposes at its interface, as a tool writes them that changes the order for its caller.
fn between_transposes(fixture: &str, order: Order) -> LoadedModel {
    let mut model = loaded(fixture);
    let graph = model.model.proto.graph.as_mut().unwrap();
    let caches: Vec<String> = graph
        .input
        .iter()
        .chain(&graph.output)
        .map(|info| info.name().to_owned())
        .filter(|name| name.contains("past") || name.contains("present"))
        .collect();
    let back = [0, 1, 2, 3].map(|axis| position(order, axis));
    for cache in &caches {
        let inner = format!("{cache}/standard");
        for node in &mut graph.node {
            let values = node.input.iter_mut().chain(&mut node.output);
            values
                .filter(|v| *v == cache)
                .for_each(|v| v.clone_from(&inner));
        }
        let turned = match cache.contains("past") {
            true => node("Transpose", "", &[cache], &[&inner]).with_ints("perm", &perm(back)),
            false => node("Transpose", "", &[&inner], &[cache]).with_ints("perm", &perm(order)),
        };
        graph.node.push(turned);
        for info in graph.input.iter_mut().chain(&mut graph.output) {
            if info.name() == cache {
                let axes = axes_of(info);
                *axes = order.map(|axis| axes[axis].clone()).to_vec();
            }
        }
    }
    graph.value_info.clear();
    sorted(graph);
    model
}

/// The same with the new rows of a step behind the transposes.
fn new_rows_between_transposes(fixture: &str, order: Order) -> LoadedModel {
    let mut model = between_transposes(fixture, order);
    let graph = model.model.proto.graph.as_mut().unwrap();
    let outputs: Vec<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
    for present in outputs.into_iter().filter(|name| name != "logits") {
        let inner = format!("{present}/standard");
        let join = graph.node.iter().find(|n| n.output.contains(&inner));
        let rows = join.unwrap().input[1].clone();
        let last = graph.node.iter_mut().find(|n| n.output.contains(&present));
        last.unwrap().input[0] = rows;
        let output = graph.output.iter_mut().find(|o| o.name() == present);
        let axis = position(order, 2);
        axes_of(output.unwrap())[axis].value = Some(Size::DimParam("new_rows".to_owned()));
    }
    model
}

/// The same with the products reading the cache that is returned, where the present is transposed back for them.
fn read_behind_the_transpose(mut model: LoadedModel, order: Order) -> LoadedModel {
    let graph = model.model.proto.graph.as_mut().unwrap();
    let back = [0, 1, 2, 3].map(|axis| position(order, axis));
    let presents: Vec<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
    for present in presents.into_iter().filter(|name| name != "logits") {
        let (inner, again) = (format!("{present}/standard"), format!("{present}/again"));
        for node in &mut graph.node {
            if !node.output.contains(&present) {
                let inputs = node.input.iter_mut().filter(|input| **input == inner);
                inputs.for_each(|input| input.clone_from(&again));
            }
        }
        let turned = node("Transpose", "", &[&present], &[&again]);
        graph.node.push(turned.with_ints("perm", &perm(back)));
    }
    sorted(graph);
    model
}

#[test]
fn caches_between_transposes_are_recognised_whole_and_as_new_rows() {
    // There, every order is known: [d, length, G, B] and [length, G, B, d] as well.
    for order in ORDERS.into_iter().chain([[3, 2, 1, 0], [2, 1, 0, 3]]) {
        let whole = between_transposes("optimum-llama", order);
        let read = read_behind_the_transpose(whole.clone(), order);
        let rows = new_rows_between_transposes("optimum-llama", order);
        for model in [whole, read, rows] {
            assert_eq!(inspect(&model.model).unwrap().rejects, [], "{order:?}");
            proved("read", (&model, &loaded("optimum-llama")), SINGLE);
            for ranks in [RankPlan::Full, RankPlan::Ratio(0.5)] {
                let after = rewritten_to(&model, &Absorbed, ranks.clone());
                let found = compared(&model, &after, in_ort(SINGLE)).unwrap();
                assert_eq!(found.passed(), ranks == RankPlan::Full, "{order:?}");
            }
        }
    }
}

/// Keys that a product reads transposed from the value that is returned: `kT = Transpose(Concat(..))`, `present = kT`.
#[test]
fn a_product_can_read_the_transposed_present() {
    let model = between_transposes("optimum-gpt_neox", TRANSPOSED);
    let mut model = model;
    let graph = model.model.proto.graph.as_mut().unwrap();
    let keys: Vec<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
    let keys: Vec<String> = keys.into_iter().filter(|k| k.ends_with(".key")).collect();
    for key in &keys {
        let inner = format!("{key}/standard");
        let turned = graph
            .node
            .iter()
            .find(|n| is_op(n, "Transpose") && n.input[0] == inner && !n.output.contains(key));
        let turned = turned.unwrap().output[0].clone();
        graph.node.retain(|n| !n.output.contains(&turned));
        exchange(graph, &turned, key);
    }
    sorted(graph);
    assert_eq!(inspect(&model.model).unwrap().rejects, []);
    proved("read", (&model, &loaded("optimum-gpt_neox")), SINGLE);
    let after = rewritten_to(&model, &Absorbed, RankPlan::Full);
    proved("rewritten", (&model, &after), SINGLE);
}

fn exchange(graph: &mut GraphProto, old: &str, new: &str) {
    for input in graph.node.iter_mut().flat_map(|n| &mut n.input) {
        if input == old {
            input.replace_range(.., new);
        }
    }
}
