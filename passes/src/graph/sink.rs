//! Nodes that only one branch of an `If` reads move into this branch, so that they run only where it is taken.

use std::collections::{HashMap, HashSet};

use crate::graph::{captured, subgraphs};
use crate::onnx::{GraphProto, NodeProto};

/// What reads a value: the branch of a node, by the positions of the node and of its attribute, or something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Branch(usize, usize),
    Other,
}

/// Moves nodes of `graph` into the branches of its `If` nodes for which `takes` holds, and of those inside of these. The nodes must
/// be in an order in which each is behind those that it reads.
pub fn sink(graph: &mut GraphProto, takes: &dyn Fn(&NodeProto) -> bool) {
    let moves = moves(graph, takes);
    let nodes = std::mem::take(&mut graph.node).into_iter().enumerate();
    let mut into: HashMap<(usize, usize), Vec<NodeProto>> = HashMap::new();
    let mut stay = Vec::new();
    for (index, node) in nodes {
        match moves.get(&index) {
            Some(&branch) => into.entry(branch).or_default().push(node),
            None => stay.push((index, node)),
        }
    }
    for (index, mut node) in stay {
        let is_taking = takes(&node);
        for (position, attribute) in node.attribute.iter_mut().enumerate() {
            let Some(branch) = attribute.g.as_mut().filter(|_| is_taking) else {
                continue;
            };
            if let Some(mut moved) = into.remove(&(index, position)) {
                let outputs = moved.iter().flat_map(|n| &n.output);
                let outputs: HashSet<String> = outputs.cloned().collect();
                let all = std::mem::take(&mut graph.value_info).into_iter();
                let (inside, outside): (Vec<_>, Vec<_>) =
                    all.partition(|info| outputs.contains(info.name()));
                graph.value_info = outside;
                branch.value_info.extend(inside);
                moved.append(&mut branch.node);
                branch.node = moved;
            }
            sink(branch, takes);
        }
        graph.node.push(node);
    }
}

/// The branch into which each node moves, by its position.
fn moves(graph: &GraphProto, takes: &dyn Fn(&NodeProto) -> bool) -> HashMap<usize, (usize, usize)> {
    let mut readers: HashMap<&str, Vec<Reader>> = HashMap::new();
    for output in &graph.output {
        readers
            .entry(output.name())
            .or_default()
            .push(Reader::Other);
    }
    let mut moves = HashMap::new();
    for (index, node) in graph.node.iter().enumerate().rev() {
        let mut all = node
            .output
            .iter()
            .filter_map(|o| readers.get(o.as_str()))
            .flatten();
        let first = all.next().copied();
        let own = match first {
            Some(Reader::Branch(at, branch))
                if all.all(|reader| Some(*reader) == first) && subgraphs(node).next().is_none() =>
            {
                moves.insert(index, (at, branch));
                Reader::Branch(at, branch)
            }
            _ => Reader::Other,
        };
        for input in node.input.iter().filter(|i| !i.is_empty()) {
            readers.entry(input).or_default().push(own);
        }
        for (position, attribute) in node.attribute.iter().enumerate() {
            let reader = match takes(node) && attribute.g.is_some() {
                true => Reader::Branch(index, position),
                false => Reader::Other,
            };
            for branch in attribute.g.iter().chain(&attribute.graphs) {
                for value in captured(branch) {
                    readers.entry(value).or_default().push(reader);
                }
            }
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::sink;
    use crate::graph::build::{node, value};
    use crate::graph::is_op;
    use crate::graph::text;
    use crate::onnx::GraphProto;

    fn branch(nodes: Vec<crate::onnx::NodeProto>, output: &str) -> GraphProto {
        GraphProto {
            node: nodes,
            output: vec![value(output, 1, &[2])],
            ..GraphProto::default()
        }
    }

    /// `a` and `b` are read by one branch, `c` by both, `d` by a branch and by a node.
    #[test]
    fn what_one_branch_reads_alone_moves_into_it() {
        let then = branch(vec![node("Add", "add", &["b", "c"], &["t"])], "t");
        let otherwise = branch(vec![node("Mul", "mul", &["c", "d"], &["e"])], "e");
        let mut graph = GraphProto {
            input: vec![value("x", 1, &[2]), value("which", 9, &[])],
            node: vec![
                node("Neg", "a", &["x"], &["a"]),
                node("Abs", "b", &["a"], &["b"]),
                node("Exp", "c", &["x"], &["c"]),
                node("Log", "d", &["x"], &["d"]),
                node("If", "choice", &["which"], &["chosen"])
                    .with_graph("then_branch", then)
                    .with_graph("else_branch", otherwise),
                node("Sub", "y", &["chosen", "d"], &["y"]),
            ],
            value_info: vec![value("a", 1, &[2]), value("c", 1, &[2])],
            output: vec![value("y", 1, &[2])],
            ..GraphProto::default()
        };
        let mut same = graph.clone();
        sink(&mut graph, &|n| is_op(n, "If"));
        let names: Vec<&str> = graph.node.iter().map(|n| n.name()).collect();
        assert_eq!(names, ["c", "d", "choice", "y"]);
        let lines = text::graph(&graph).join("\n");
        let moved = lines.find("a = Neg(x)").zip(lines.find("b = Abs(a)"));
        assert!(moved.is_some_and(|(a, b)| a < b), "{lines}");
        let described: Vec<&str> = graph.value_info.iter().map(|i| i.name()).collect();
        assert_eq!(described, ["c"]);
        let untouched = same.clone();
        sink(&mut same, &|_| false);
        assert_eq!(same, untouched);
    }
}
