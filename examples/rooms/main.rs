//! Counts the rooms of both crates: `cargo run --example rooms [-- CHECKOUT]`.
//!
//! A room is a folder of `src`; an arrow leads from a room to one that it uses; floors are the rooms on the longest way
//! along arrows; a circle is a group of files of one room of which each uses, directly or not, each other.

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
