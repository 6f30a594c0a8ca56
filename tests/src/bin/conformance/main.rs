//! Writes `docs/conformance.md` from the names of the tests.
//!
//! A test says which lines of the conformance list it covers by its name: `c21_mac1_checked_first` is line C21,
//! `c08_r42_zero_result_refused` lines C8 and R42. This program reads the sources of the workspace for such names and
//! writes the table; its own tests fail when a line is neither tested nor explained, when a name carries a number that
//! does not exist, and when the written file is out of date. Run it again after adding a test:
//!
//! ```text
//! cargo run -p patronus-tests --bin conformance
//! ```
#![forbid(unsafe_code)]

mod items;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use items::{Item, SECTIONS, Section, State};

/// Where the tests of each line are: (letter, number) to (file, test name), sorted.
type Index = BTreeMap<(char, u8), Vec<(String, String)>>;

/// Files and folders of the workspace that hold sources, relative to its root.
const SOURCES: &[&str] = &["bench", "crypto", "engine", "tests"];

/// The generated file, relative to the root of the workspace.
const OUTPUT: &str = "docs/conformance.md";

fn main() -> io::Result<()> {
    let root = workspace();
    let (index, problems) = scan(&root)?;
    for problem in problems.iter().chain(&gaps(&index)) {
        eprintln!("conformance: {problem}");
    }
    fs::write(root.join(OUTPUT), render(&index))?;
    println!("{OUTPUT}: {}", Tally::new(&index));
    Ok(())
}

/// The root of the workspace: the folder above this package.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace")
        .to_path_buf()
}

/// Reads every source file; returns where each number is tested and which names make no sense.
fn scan(root: &Path) -> io::Result<(Index, Vec<String>)> {
    let mut files = Vec::new();
    for folder in SOURCES {
        collect(&root.join(folder), &mut files)?;
    }
    files.sort();
    let (mut index, mut problems) = (Index::new(), Vec::new());
    for file in files {
        let shown = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        for test in tests_in(&fs::read_to_string(&file)?) {
            for (letter, digits) in numbers(&test) {
                match digits
                    .parse()
                    .ok()
                    .filter(|&number| digits.len() == 2 && item(letter, number).is_some())
                {
                    Some(number) => index
                        .entry((letter, number))
                        .or_default()
                        .push((shown.clone(), test.clone())),
                    None => problems.push(format!("{shown}: {test}: there is no line {letter}{digits}")),
                }
            }
        }
    }
    Ok((index, problems))
}

/// Adds the Rust files below `folder` to `files`, leaving out build output and hidden folders.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        if name == "target" || name.to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The names of the test functions in a source file, those marked `#[ignore]` left out.
fn tests_in(source: &str) -> Vec<String> {
    let (mut found, mut test, mut ignored) = (Vec::new(), false, false);
    for line in source.lines().map(str::trim) {
        test |= line.starts_with("#[test]");
        ignored |= line.starts_with("#[ignore");
        if let Some(name) = function(line) {
            if test && !ignored {
                found.push(name.to_owned());
            }
            (test, ignored) = (false, false);
        }
    }
    found
}

/// The name of the function that a line of source begins, if it begins one.
fn function(line: &str) -> Option<&str> {
    let code = if line.starts_with("#[") {
        line.rsplit_once(']')?.1.trim()
    } else {
        line
    };
    let rest = code
        .strip_prefix("fn ")
        .or_else(|| code.strip_prefix("pub fn "))?;
    rest.split(['(', '<']).next()
}

/// The numbers at the front of a test's name, as letter and digits.
fn numbers(test: &str) -> impl Iterator<Item = (char, &str)> {
    test.split('_').map_while(|word| {
        let letter = word.chars().next().filter(|letter| matches!(letter, 'c' | 'r'))?;
        let digits = &word[1..];
        let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        number.then(|| (letter.to_ascii_uppercase(), digits))
    })
}

/// The line with this number.
fn item(letter: char, number: u8) -> Option<&'static Item> {
    lines()
        .find(|(section, item)| section.letter == letter && item.number == number)
        .map(|(_, item)| item)
}

/// Every line with its section.
fn lines() -> impl Iterator<Item = (&'static Section, &'static Item)> {
    SECTIONS
        .iter()
        .flat_map(|section| section.items.iter().map(move |item| (section, item)))
}

/// What is wrong between the list and the tests: lines said to be tested that are not, and the other way round.
fn gaps(index: &Index) -> Vec<String> {
    let mut gaps = Vec::new();
    for (section, item) in lines() {
        let tested = index.contains_key(&(section.letter, item.number));
        let name = format!("{}{}", section.letter, item.number);
        match item.state {
            State::Covered | State::Part(_) if !tested => {
                gaps.push(format!(
                    "{name} ({}) has no test: write one or say why in items.rs",
                    item.title
                ));
            }
            State::Same(letter, number) if !index.contains_key(&(letter, number)) => {
                gaps.push(format!(
                    "{name} ({}) is said to be {letter}{number}, which has no test",
                    item.title
                ));
            }
            State::Open(_) if tested => {
                gaps.push(format!(
                    "{name} ({}) is tested now: mark it so in items.rs",
                    item.title
                ));
            }
            _ => {}
        }
    }
    gaps
}

/// How many lines are in which state.
struct Tally {
    tested: usize,
    part: usize,
    open: usize,
}

impl Tally {
    fn new(index: &Index) -> Tally {
        let mut tally = Tally {
            tested: 0,
            part: 0,
            open: 0,
        };
        for (section, item) in lines() {
            match (item.state, index.contains_key(&(section.letter, item.number))) {
                (State::Covered, true) | (State::Same(..), _) => tally.tested += 1,
                (State::Part(_), true) => tally.part += 1,
                _ => tally.open += 1,
            }
        }
        tally
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} lines tested, {} in part, {} open",
            self.tested, self.part, self.open
        )
    }
}

/// The text of the file.
fn render(index: &Index) -> String {
    let mut out = String::from(
        "# Conformance\n\n\
         Written by `cargo run -p patronus-tests --bin conformance` from the names of the tests; do not edit. C lines are\n\
         what the protocol and its Linux implementation do, R lines are defects that other implementations had and that\n\
         must not appear here. A test covers the lines whose numbers its name begins with.\n\n",
    );
    writeln!(out, "{}.", Tally::new(index)).expect("writing to a string");
    for section in SECTIONS {
        write!(
            out,
            "\n## {}\n\n| line | what | tested by |\n|---|---|---|\n",
            section.heading
        )
        .expect("writing to a string");
        for item in section.items {
            let tests = index
                .get(&(section.letter, item.number))
                .map_or(&[][..], Vec::as_slice);
            let place = place(item.state, tests);
            writeln!(
                out,
                "| {}{} | {} | {place} |",
                section.letter, item.number, item.title
            )
            .expect("writing to a string");
        }
    }
    out
}

/// The last column: the tests by file, and what is missing.
fn place(state: State, tests: &[(String, String)]) -> String {
    let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (file, test) in tests {
        by_file.entry(file).or_default().push(test);
    }
    let mut parts: Vec<String> = by_file
        .into_iter()
        .map(|(file, tests)| {
            format!(
                "{file}: {}",
                tests
                    .iter()
                    .map(|t| format!("`{t}`"))
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        })
        .collect();
    match state {
        State::Covered if tests.is_empty() => parts.push("no test".to_owned()),
        State::Covered => {}
        State::Same(letter, number) => parts.push(format!("as {letter}{number}")),
        State::Part(left_out) => parts.push(format!("left out: {left_out}")),
        State::Open(why) => parts.push(why.to_owned()),
    }
    parts.join("<br>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_tested_or_explained() {
        let (index, mut problems) = scan(&workspace()).expect("the sources can be read");
        problems.extend(gaps(&index));
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }

    #[test]
    fn written_file_is_up_to_date() {
        let (index, _) = scan(&workspace()).expect("the sources can be read");
        let written = fs::read_to_string(workspace().join(OUTPUT)).unwrap_or_default();
        assert!(
            written == render(&index),
            "{OUTPUT} is out of date: cargo run -p patronus-tests --bin conformance"
        );
    }

    #[test]
    fn list_has_each_number_once_and_in_order() {
        for (letter, last) in [('C', 83), ('R', 55)] {
            let found: Vec<u8> = lines()
                .filter(|(section, _)| section.letter == letter)
                .map(|(_, item)| item.number)
                .collect();
            assert_eq!(found, (1..=last).collect::<Vec<u8>>(), "{letter}");
        }
    }

    #[test]
    fn names_are_found_behind_attributes_and_in_macros() {
        let source = "#[test]\n#[cfg(unix)]\n// why\nfn c21_a() {}\nfn c22_helper() {}\n    #[test]\n    fn r05_b(x in 0..9) {}\n\
                      #[test] fn c03_c() {}\n#[test]\n#[ignore = \"slow\"]\nfn c04_d() {}\n";
        assert_eq!(tests_in(source), ["c21_a", "r05_b", "c03_c"]);
    }

    #[test]
    fn numbers_end_at_the_first_other_word() {
        let of = |name| numbers(name).collect::<Vec<_>>();
        assert_eq!(of("c08_r42_zero_c11"), [('C', "08"), ('R', "42")]);
        assert_eq!(of("c2s_path"), []);
        assert_eq!(of("reads_c21"), []);
        assert_eq!(of("c7_short"), [('C', "7")]);
    }

    #[test]
    fn gaps_are_told_both_ways() {
        let mut index = Index::new();
        let all = lines()
            .filter(|(_, item)| !matches!(item.state, State::Open(_)))
            .count();
        assert_eq!(gaps(&index).len(), all);
        let (section, item) = lines()
            .find(|(_, item)| matches!(item.state, State::Open(_)))
            .expect("an open line");
        index.insert((section.letter, item.number), vec![("a.rs".into(), "t".into())]);
        assert_eq!(gaps(&index).len(), all + 1);
    }
}
