//! Prints the dependency figures of both crates: `cargo run --example rooms [-- CHECKOUT]`.
//!
//! A room is a top-level module: a folder of `src`, or a file directly in it. An arrow is a dependency of one room on
//! another; floors are the rooms on the longest path of arrows; a circle is a dependency cycle between files of one
//! room.

mod house;
mod paths;

use std::io::{self, Write};
use std::path::PathBuf;

use house::House;

fn main() -> io::Result<()> {
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = std::env::args_os().nth(1).map_or_else(here, PathBuf::from);
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "crate            rooms  arrows  floors  circles  files  median lines  longest"
    )?;
    let crates = [("passes/src", "gqa2mla_passes"), ("src", "gqa2mla")];
    let mut circles = Vec::new();
    for (source, name) in crates {
        let house = House::read(&root.join(source), name)?;
        let counts = house.counts();
        writeln!(
            out,
            "{name:<15}  {:>5}  {:>6}  {:>6}  {:>7}  {:>5}  {:>12}  {:>7}",
            counts.rooms,
            counts.arrows,
            counts.floors,
            counts.circles,
            counts.files,
            counts.median,
            counts.longest
        )?;
        let found = house.circles().into_iter();
        circles.extend(found.map(|files| format!("{name}: {}", files.join(", "))));
    }
    for circle in circles {
        writeln!(out, "circle in {circle}")?;
    }
    Ok(())
}
