//! Data flows one way: a room uses the rooms of the rows before its own, and inside a room no files use each other in a
//! circle.

#[path = "../../examples/rooms/house.rs"]
mod house;
#[path = "../../examples/rooms/paths.rs"]
mod paths;

use std::fs;
use std::path::Path;

use house::House;
use paths::named;

/// The rooms of `passes/src`.
const PASSES: [&[&str]; 9] = [
    &["onnx", "numbers"],
    &["graph"],
    &["facts"],
    &["recognize", "factor"],
    &["weights"],
    &["operators"],
    &["analysis"],
    &["forms"],
    &["pipeline"],
];

/// The rooms of `src`.
const SHELL: [&[&str]; 8] = [
    &["files", "runtime"],
    &["validate", "model"],
    &["measure", "rewriter", "bench"],
    &["fit", "tune"],
    &["compress"],
    &["serving"],
    &["report"],
    &["cli"],
];

/// Circles inside rooms that are still to be opened, by their first file. The aim is an empty list.
const KNOWN_CIRCLES: [&str; 0] = [];

fn passes() -> House {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    House::read(&root.join("passes/src"), "gqa2mla_passes").unwrap()
}

fn shell() -> House {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    House::read(&root.join("src"), "gqa2mla").unwrap()
}

#[test]
fn passes_use_only_rooms_that_come_before_them() {
    rows_hold(&passes(), &PASSES);
}

#[test]
fn the_shell_uses_only_rooms_that_come_before_it() {
    rows_hold(&shell(), &SHELL);
}

fn rows_hold(house: &House, rows: &[&[&str]]) {
    let row = |room: &str| {
        let found = rows.iter().position(|row| row.contains(&room));
        found.unwrap_or_else(|| panic!("{room} has no place among the rows"))
    };
    house.rooms().into_iter().for_each(|room| {
        row(room);
    });
    let mut seen = 0;
    for (room, other, file, used) in house.between_rooms() {
        seen += 1;
        assert!(
            row(other) < row(room),
            "{file} uses {used}: {other} comes after {room} or beside it"
        );
    }
    assert!(
        seen > 20,
        "only {seen} uses of one room by another were found"
    );
}

#[test]
fn no_files_of_a_room_use_each_other_in_a_circle() {
    let (passes, shell) = (passes(), shell());
    let circles: Vec<Vec<&str>> = [passes.circles(), shell.circles()].concat();
    for circle in &circles {
        assert!(
            KNOWN_CIRCLES.contains(&circle[0]),
            "a circle: {}",
            circle.join(", ")
        );
    }
    for known in KNOWN_CIRCLES {
        assert!(
            circles.iter().any(|circle| circle[0] == known),
            "the circle of {known} is open: take it off the list"
        );
    }
}

/// The paths that `text`, a file of the crate `home` with a child module `child`, names.
fn paths_of(text: &str) -> Vec<String> {
    let found = named(&format!("mod child;\n{text}"), "home");
    found.paths.iter().map(|path| path.join("::")).collect()
}

#[test]
fn every_way_to_name_a_module_is_read() {
    let cases: [(&str, &[&str]); 12] = [
        ("use crate::a::b;", &["crate::a::b"]),
        (
            "use crate::{a, b::{self, c as d}, e::*};",
            &["crate::a", "crate::b", "crate::b::c", "crate::e"],
        ),
        ("use home::a::{b};", &["home::a::b"]),
        ("use child::f;", &["child::f"]),
        ("use std::fs::{self, File};", &[]),
        (
            "fn f(x: super::g::T) -> self::h::U {}",
            &["super::g::T", "self::h::U"],
        ),
        (
            "fn f() { println!(\"{}\", crate::a::b::<u8>()); }",
            &["crate::a::b"],
        ),
        (
            "// crate::a\n/* crate::b */ const C: &str = \"crate::c \\\" crate::d\";",
            &[],
        ),
        (
            "const C: &str = r#\"\" crate::a\"#; const D: char = '\"'; use crate::e;",
            &["crate::e"],
        ),
        (
            "mod tests { use super::f; use super::super::g::h; }",
            &["super::g::h"],
        ),
        ("mod tests { fn f() {} } use super::g;", &["super::g"]),
        ("fn f<'a>(x: &'a crate::a::T) {}", &["crate::a::T"]),
    ];
    for (text, wanted) in cases {
        assert_eq!(paths_of(text), wanted, "{text}");
    }
}

#[test]
fn a_circle_is_found_through_a_name_that_is_given_away() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("lib.rs", "pub mod room;\npub mod other;");
    write(
        "room/mod.rs",
        "mod a;\nmod b;\npub use a::A;\npub use b::B;",
    );
    write("room/a.rs", "use crate::room::B;\npub struct A(B);");
    write("room/b.rs", "pub struct B;");
    write("other.rs", "use crate::{room::{A, B}};");
    let open = House::read(folder.path(), "home").unwrap();
    assert!(open.circles().is_empty());
    assert_eq!(
        (
            open.counts().rooms,
            open.counts().arrows,
            open.counts().floors
        ),
        (2, 1, 2)
    );
    write("room/b.rs", "pub struct B(Box<super::A>);");
    let closed = House::read(folder.path(), "home").unwrap();
    assert_eq!(closed.circles(), [["room/a.rs", "room/b.rs"]]);
    assert_eq!(closed.counts().circles, 1);
}
