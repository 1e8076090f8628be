//! The files of a crate as a dependency graph between files and between rooms.
//!
//! A room is a top-level module: a folder of `src`, or a file directly in `src`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::paths::named;

/// A module by its path from the crate's root.
type Module = Vec<String>;

/// A file of the crate.
struct File {
    path: String,
    lines: usize,
    /// The module paths that the file uses, from the crate root.
    uses: Vec<Module>,
    /// The names that the file re-exports, each with the path from the crate root that it stands for.
    exports: BTreeMap<String, Module>,
}

/// The files of a crate and their dependencies.
pub struct House {
    files: BTreeMap<Module, File>,
    arrows: BTreeSet<(Module, Module)>,
}

/// The figures of a crate.
#[derive(Debug, PartialEq, Eq)]
pub struct Counts {
    /// Number of rooms: folders of `src`, and files directly in `src`.
    pub rooms: usize,
    /// Number of pairs of rooms of which one uses the other.
    pub arrows: usize,
    /// Number of rooms on the longest path of dependencies.
    pub floors: usize,
    /// Number of dependency cycles between the files of one room.
    pub circles: usize,
    /// Number of files, without `lib.rs` and `main.rs`.
    pub files: usize,
    /// Median number of lines of a file.
    pub median: usize,
    /// Number of lines of the longest file.
    pub longest: usize,
}

impl House {
    /// Reads the crate `name` whose files are in `source`.
    pub fn read(source: &Path, name: &str) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for path in sources(source)? {
            let relative = path.strip_prefix(source).unwrap_or(&path);
            let module = module_of(relative);
            // `main.rs` only calls the library.
            if module.is_empty() && !relative.ends_with("lib.rs") {
                continue;
            }
            let text = fs::read_to_string(&path)?;
            let found = named(&text, name);
            let absolute = |path: &Module| from_root(&module, path, name);
            let file = File {
                path: relative.display().to_string(),
                lines: text.lines().count(),
                uses: found.paths.iter().map(absolute).collect(),
                exports: (found.exports.iter())
                    .map(|(name, path)| (name.clone(), absolute(path)))
                    .collect(),
            };
            files.insert(module, file);
        }
        let mut house = Self {
            files,
            arrows: BTreeSet::new(),
        };
        house.arrows = house.all_arrows();
        Ok(house)
    }

    fn all_arrows(&self) -> BTreeSet<(Module, Module)> {
        let mut arrows = BTreeSet::new();
        for (module, file) in &self.files {
            // Re-exports of a room's own files are no dependency; re-exports of other rooms are.
            let given = file.exports.values();
            let given = given.filter(|path| !path.starts_with(module));
            for path in file.uses.iter().chain(given) {
                let target = self.holder(path, 0);
                if target != *module && !target.is_empty() && !module.is_empty() {
                    arrows.insert((module.clone(), target));
                }
            }
        }
        arrows
    }

    /// The file that defines what `path` names, resolved through re-exports.
    fn holder(&self, path: &[String], steps: usize) -> Module {
        let known = (0..=path.len()).rev();
        let mut known = known.filter_map(|n| path.split_at_checked(n));
        let Some((module, rest)) = known.find(|(module, _)| self.files.contains_key(*module))
        else {
            return Module::new();
        };
        let exported = rest
            .first()
            .and_then(|name| self.files.get(module)?.exports.get(name));
        match exported {
            // A cycle of re-exports is not valid Rust; the limit protects against an endless loop.
            Some(path) if steps < 8 => {
                let tail = rest.iter().skip(1).cloned();
                let path: Module = path.iter().cloned().chain(tail).collect();
                self.holder(&path, steps + 1)
            }
            _ => module.to_vec(),
        }
    }

    /// Every dependency between rooms: the two rooms and the two files.
    pub fn between_rooms(&self) -> impl Iterator<Item = (&str, &str, &str, &str)> {
        let arrows = self.arrows.iter();
        arrows.filter_map(|(from, to)| {
            let (room, other) = (from.first()?, to.first()?);
            let (file, used) = (self.files.get(from)?, self.files.get(to)?);
            (room != other).then_some((
                room.as_str(),
                other.as_str(),
                file.path.as_str(),
                used.path.as_str(),
            ))
        })
    }

    /// Every dependency cycle between files of one room, as lists of paths.
    pub fn circles(&self) -> Vec<Vec<&str>> {
        let inside = self.arrows.iter();
        let inside: Vec<(&Module, &Module)> = inside
            .filter(|(from, to)| from.first() == to.first())
            .map(|(from, to)| (from, to))
            .collect();
        let groups = groups(&inside).into_iter();
        groups
            .map(|group| {
                let files = group
                    .into_iter()
                    .filter_map(|module| self.files.get(module));
                files.map(|file| file.path.as_str()).collect()
            })
            .collect()
    }

    /// The names of the rooms.
    pub fn rooms(&self) -> BTreeSet<&str> {
        let modules = self.files.keys();
        modules
            .filter_map(|m| m.first().map(String::as_str))
            .collect()
    }

    /// The figures of the crate.
    pub fn counts(&self) -> Counts {
        let mut lines: Vec<usize> = (self.files.iter())
            .filter(|(module, _)| !module.is_empty())
            .map(|(_, file)| file.lines)
            .collect();
        lines.sort_unstable();
        let arrows: BTreeSet<(&str, &str)> = self.between_rooms().map(|a| (a.0, a.1)).collect();
        Counts {
            rooms: self.rooms().len(),
            floors: floors(&self.rooms(), &arrows),
            arrows: arrows.len(),
            circles: self.circles().len(),
            files: lines.len(),
            median: lines.get(lines.len() / 2).copied().unwrap_or(0),
            longest: lines.last().copied().unwrap_or(0),
        }
    }
}

/// The strongly connected components of more than one element.
fn groups<T: Ord + Copy>(arrows: &[(T, T)]) -> Vec<BTreeSet<T>> {
    let reached = |start: T| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(one) = next.pop() {
            let targets = arrows.iter().filter(|(from, _)| *from == one);
            next.extend(targets.map(|(_, to)| *to).filter(|to| seen.insert(*to)));
        }
        seen
    };
    let all: BTreeSet<T> = arrows.iter().map(|(from, _)| *from).collect();
    let from: BTreeMap<T, BTreeSet<T>> = all.iter().map(|one| (*one, reached(*one))).collect();
    let mut found: BTreeSet<BTreeSet<T>> = BTreeSet::new();
    for (one, reached) in &from {
        let back = |other: &&T| from.get(other).is_some_and(|r| r.contains(one));
        let group: BTreeSet<T> = reached.iter().filter(back).copied().collect();
        if group.len() > 1 {
            found.insert(group);
        }
    }
    found.into_iter().collect()
}

/// The number of rooms on the longest path of dependencies; rooms of a cycle count once.
fn floors(rooms: &BTreeSet<&str>, arrows: &BTreeSet<(&str, &str)>) -> usize {
    fn below(room: &str, arrows: &BTreeSet<(&str, &str)>, way: &mut Vec<String>) -> usize {
        if way.iter().any(|r| r == room) {
            return 0;
        }
        way.push(room.to_owned());
        let used = arrows.iter().filter(|(from, _)| *from == room);
        let deepest = used.map(|(_, to)| below(to, arrows, way)).max();
        way.pop();
        1 + deepest.unwrap_or(0)
    }
    let heights = rooms
        .iter()
        .map(|room| below(room, arrows, &mut Vec::new()));
    heights.max().unwrap_or(0)
}

/// The module path of a file: `a/b.rs` and `a/b/mod.rs` are `[a, b]`; `lib.rs` and `main.rs` are the root.
fn module_of(relative: &Path) -> Module {
    let mut module: Module = relative
        .with_extension("")
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if matches!(
        module.last().map(String::as_str),
        Some("mod" | "lib" | "main")
    ) {
        module.pop();
    }
    module
}

/// The path from the root of the crate `name` that `path` means in `module`.
fn from_root(module: &Module, path: &Module, name: &str) -> Module {
    let mut parts = path.iter().peekable();
    let mut base = module.clone();
    match parts.peek().map(|first| first.as_str()) {
        Some("crate") => base.clear(),
        Some(first) if first == name => base.clear(),
        Some("self") => {}
        Some("super") => {
            while parts.next_if(|part| *part == "super").is_some() {
                base.pop();
            }
            return base.into_iter().chain(parts.cloned()).collect();
        }
        // A child module.
        _ => return base.into_iter().chain(parts.cloned()).collect(),
    }
    base.into_iter().chain(parts.skip(1).cloned()).collect()
}

/// Every Rust file under `folder`.
fn sources(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
