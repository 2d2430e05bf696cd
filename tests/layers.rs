//! Holds the architecture: which top-level module may import which, and a few rules that lints cannot say.
//!
//! Imports go down one way: `main → cli → daemon → ops → {repo, source, plan}`, `repo → store`, `plan → source` (for what a check
//! expects); everybody may use the shared vocabulary. `repo` and `source` do not know each other: they meet in `ops`. Works on the text
//! of `src/`, with comments and literals taken out, so it needs no parser and sees what is behind any `cfg`.

use std::fs;
use std::path::{Path, PathBuf};

/// The shared vocabulary: used by all, using only each other.
const SHARED: [&str; 5] = ["id", "error", "event", "clock", "entry"];

/// Top-level module and what else it may import beside the shared vocabulary. A new module takes its place here first.
const TABLE: [(&str, &[&str]); 11] = [
    // A crate of its own, which is optimised in tests too.
    ("cipher", &[]),
    ("store", &[]),
    ("repo", &["store"]),
    ("source", &[]),
    ("plan", &["source"]),
    ("ops", &["repo", "source", "plan", "store"]),
    ("daemon", &["ops", "plan", "repo", "source", "store"]),
    ("parsers", &["ops", "plan", "repo", "source", "store"]),
    ("web", &["daemon", "ops", "plan", "repo", "source", "store"]),
    ("cli", &["web", "daemon", "ops", "plan", "repo", "source", "store"]),
    ("main", &["cli"]),
];

/// Where the terminal is written to.
const MAY_PRINT: [&str; 2] = ["cli", "main"];

#[test]
fn imports_follow_the_table() {
    let files = sources();
    let modules: Vec<String> = files.iter().map(|file| file.module.clone()).collect();
    let mut broken = Vec::new();
    for file in &files {
        broken.extend(import_violations(file, &modules));
    }
    report(&broken);
}

#[test]
fn no_unsafe_no_unfinished_code_no_printing_below_the_command_line() {
    let mut broken = Vec::new();
    for file in &sources() {
        broken.extend(word_violations(file));
    }
    report(&broken);
}

fn report(broken: &[String]) {
    assert!(broken.is_empty(), "{} broken rule(s) of tests/layers.rs:\n{}\n", broken.len(), broken.join("\n"));
}

/// One source file, ready to be looked at.
struct SourceFile {
    /// Relative to the project, for messages.
    path: String,
    /// Top-level module it belongs to; `lib` and `main` for the roots.
    module: String,
    /// The text with comments, strings and character literals blanked; line breaks and byte positions stay.
    code: String,
    /// Byte ranges of what is compiled for tests only.
    tests: Vec<(usize, usize)>,
}

impl SourceFile {
    fn new(path: &str, text: &str) -> Self {
        let inside = path.strip_prefix("src/").unwrap_or(path);
        let first = inside.split('/').next().unwrap_or(inside);
        let code = blank_comments_and_literals(text);
        let is_test_file = inside.ends_with("/tests.rs") || inside.contains("/tests/");
        let tests = if is_test_file { vec![(0, code.len())] } else { test_only_ranges(&code) };
        Self { path: path.into(), module: first.trim_end_matches(".rs").into(), code, tests }
    }

    fn is_test_code(&self, position: usize) -> bool {
        self.tests.iter().any(|&(start, end)| (start..end).contains(&position))
    }

    /// `src/file.rs:LINE: rule`, as an editor understands it.
    fn violation(&self, position: usize, rule: &str) -> String {
        let line = 1 + self.code[..position].matches('\n').count();
        format!("  {}:{line}: {rule}", self.path)
    }
}

fn sources() -> Vec<SourceFile> {
    // Asked for when it runs, so that one build can be pointed at another checkout.
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the project's folder"));
    let mut paths = Vec::new();
    collect(&root.join("src"), &mut paths);
    paths.sort();
    assert!(!paths.is_empty(), "no source files below {}", root.display());
    let read = |path: &PathBuf| {
        let relative = path.strip_prefix(&root).expect("below the project").to_str().expect("UTF-8 names");
        SourceFile::new(relative, &fs::read_to_string(path).expect("source files are readable"))
    };
    paths.iter().map(read).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("source folders are readable") {
        let path = entry.expect("source folders are readable").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

fn import_violations(file: &SourceFile, modules: &[String]) -> Vec<String> {
    let mut broken = Vec::new();
    for position in words(&file.code, "super") {
        if file.code[position + "super".len()..].trim_start().starts_with("::") && !file.is_test_code(position) {
            broken.push(file.violation(position, "`super::` belongs in a module's own tests; write `crate::…`"));
        }
    }
    if file.module == "lib" {
        return broken;
    }
    let is_shared = SHARED.contains(&file.module.as_str());
    let row = TABLE.iter().find(|(module, _)| *module == file.module);
    if row.is_none() && !is_shared {
        broken.push(file.violation(0, &format!("module `{}` is not in the table of tests/layers.rs", file.module)));
        return broken;
    }
    let allowed = row.map_or(&[][..], |(_, allowed)| allowed);
    for root in ["crate", "lifeboat"] {
        for (position, imported) in imports(&file.code, root) {
            let imported = imported.as_str();
            if imported == "*" {
                broken.push(file.violation(position, "imports everything of the crate root; name the module"));
                continue;
            }
            // What is no module is an item of the crate root, such as an exported macro.
            let is_module = TABLE.iter().any(|(module, _)| *module == imported) || modules.iter().any(|module| module == imported);
            if !is_module || imported == file.module || SHARED.contains(&imported) || allowed.contains(&imported) {
                continue;
            }
            let may: Vec<&str> = SHARED.iter().chain(allowed).copied().collect();
            let rule = format!("`{}` may not import `{imported}`; it may import {}", file.module, may.join(", "));
            broken.push(file.violation(position, &rule));
        }
    }
    broken
}

fn word_violations(file: &SourceFile) -> Vec<String> {
    let mut broken = Vec::new();
    for position in words(&file.code, "unsafe") {
        broken.push(file.violation(position, "no `unsafe`"));
    }
    for unfinished in ["todo", "unimplemented"] {
        for position in macro_calls(&file.code, unfinished) {
            broken.push(file.violation(position, &format!("no `{unfinished}!`: unfinished code does not land")));
        }
    }
    if !MAY_PRINT.contains(&file.module.as_str()) {
        for printing in ["println", "print", "eprintln", "eprint", "dbg"] {
            for position in macro_calls(&file.code, printing).into_iter().filter(|&position| !file.is_test_code(position)) {
                broken.push(file.violation(position, &format!("no `{printing}!` outside src/cli and src/main.rs: emit an event")));
            }
        }
    }
    broken
}

/// What is imported below a crate root by any path: `ROOT::name…` and each part of `ROOT::{…}`, with its position.
fn imports(code: &str, root: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for position in words(code, root) {
        let Some(rest) = code[position + root.len()..].trim_start().strip_prefix("::") else { continue };
        let rest = rest.trim_start();
        let start = code.len() - rest.len();
        if !rest.starts_with('{') {
            found.push((start, first_name(rest)));
            continue;
        }
        let (mut depth, mut in_part) = (0, false);
        for (offset, letter) in rest.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => in_part = false,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            // The first letter of each part of the outermost braces.
            if !in_part && depth == 1 && !letter.is_whitespace() && !matches!(letter, '{' | ',') {
                in_part = true;
                found.push((start + offset, first_name(&rest[offset..])));
            }
        }
    }
    found
}

fn first_name(text: &str) -> String {
    if text.starts_with('*') { "*".into() } else { text.chars().take_while(|&letter| is_name_letter(letter)).collect() }
}

fn is_name_letter(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Positions of a whole word.
fn words(code: &str, word: &str) -> Vec<usize> {
    let stands_alone = |&(position, _): &(usize, &str)| {
        !code[..position].ends_with(is_name_letter) && !code[position + word.len()..].starts_with(is_name_letter)
    };
    code.match_indices(word).filter(stands_alone).map(|(position, _)| position).collect()
}

fn macro_calls(code: &str, name: &str) -> Vec<usize> {
    words(code, name).into_iter().filter(|position| code[position + name.len()..].trim_start().starts_with('!')).collect()
}

/// Ranges of items behind a `cfg` attribute that mentions `test` without `not`.
fn test_only_ranges(code: &str) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    for (start, _) in code.match_indices("#[cfg(") {
        let attribute_end = start + code[start..].find(']').unwrap_or(0);
        let attribute = &code[start..attribute_end];
        if words(attribute, "test").is_empty() || !words(attribute, "not").is_empty() {
            continue;
        }
        let mut depth = 0;
        let mut end = code.len();
        for (offset, letter) in code[attribute_end + 1..].char_indices() {
            match letter {
                '{' | '(' | '[' => depth += 1,
                '}' | ')' | ']' => depth -= 1,
                _ => {}
            }
            if depth == 0 && matches!(letter, ';' | '}') {
                end = attribute_end + 1 + offset + 1;
                break;
            }
        }
        ranges.push((start, end));
    }
    ranges
}

/// The same text with every byte of comments and literals replaced by a space, except line breaks.
fn blank_comments_and_literals(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let in_name = out.ends_with(is_name_letter);
        let blanked = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment_bytes(rest)
        } else if letter == '"' {
            string_bytes(rest)
        } else if !in_name && letter == 'r' && raw_string_bytes(rest) > 0 {
            raw_string_bytes(rest)
        } else if !in_name && (rest.starts_with("br") || rest.starts_with("cr")) && raw_string_bytes(&rest[1..]) > 0 {
            1 + raw_string_bytes(&rest[1..])
        } else if letter == '\'' {
            character_bytes(rest)
        } else {
            0
        };
        if blanked == 0 {
            out.push(letter);
            rest = &rest[letter.len_utf8()..];
        } else {
            out.extend(rest[..blanked].bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
            rest = &rest[blanked..];
        }
    }
    out
}

fn block_comment_bytes(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

fn string_bytes(text: &str) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of `r"…"` or `r#"…"#`; 0 for anything else, such as `r#name`.
fn raw_string_bytes(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|&byte| byte == b'#').count();
    if text.as_bytes().get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let body = 2 + hashes;
    let closing = format!("\"{}", "#".repeat(hashes));
    text[body..].find(&closing).map_or(text.len(), |at| body + at + closing.len())
}

/// Length of a character literal; 0 for a lifetime.
fn character_bytes(text: &str) -> usize {
    let mut letters = text.char_indices().skip(1);
    match letters.next() {
        Some((_, '\\')) => text[2..].char_indices().skip(1).find(|&(_, letter)| letter == '\'').map_or(0, |(at, _)| 2 + at + 1),
        Some((_, first)) if first != '\'' => match letters.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        _ => 0,
    }
}

fn imports_of(path: &str, text: &str) -> Vec<String> {
    let modules: Vec<String> = ["store", "repo", "source", "error"].map(String::from).into();
    import_violations(&SourceFile::new(path, text), &modules)
}

#[test]
fn an_import_upwards_is_found_however_it_is_written() {
    for text in [
        "use crate::ops::backup;",
        "use crate::{error::{Error, Result}, ops::backup};",
        "pub use crate::{\n    error,\n    ops,\n};",
        "fn f() { crate :: ops::run() }",
        "fn f<'a>(c: char) -> bool { c == '\"' || crate::ops::is(c) }",
        "use lifeboat::ops;",
        "macro_rules! m { () => { $crate::ops::run() } }",
        "#[cfg(not(test))] use crate::ops;",
    ] {
        assert_eq!(imports_of("src/repo/write.rs", text).len(), 1, "{text}");
    }
    let found = imports_of("src/repo/write.rs", "//! Writes.\n\nuse crate::source::Source;\n");
    assert!(found[0].starts_with("  src/repo/write.rs:3: `repo` may not import `source`"), "{found:?}");
    assert_eq!(imports_of("src/error.rs", "use crate::store::Store;").len(), 1, "the shared vocabulary uses nothing");
    assert_eq!(imports_of("src/extra.rs", "").len(), 1, "a module that the table does not name");
    assert_eq!(imports_of("src/repo/mod.rs", "use crate::*;").len(), 1);
}

#[test]
fn imports_downwards_and_mere_mentions_are_left_alone() {
    for text in [
        "use crate::{store::Store, error, repo::{pack, index}};",
        "// use crate::ops;\n/* crate::ops /* nested */ crate::ops */",
        "const S: &str = \"crate::ops\\\" crate::ops\"; const R: &str = r#\"crate::ops \" \"#;",
        "crate::bail!(\"no such macro is a module\");",
        "pub(crate) fn f() {}",
        "use other_crate::ops;",
    ] {
        assert_eq!(imports_of("src/repo/write.rs", text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn super_is_for_tests() {
    assert_eq!(imports_of("src/repo/pack.rs", "use super::index;").len(), 1);
    assert_eq!(imports_of("src/repo/pack.rs", "mod inner { use super::x; }\n#[cfg(test)]\nmod tests { }").len(), 1);
    assert!(
        imports_of("src/repo/pack.rs", "#[cfg(test)]\n#[expect(lint)]\nmod tests {\n use super::*;\n mod more { use super::x; }\n}")
            .is_empty()
    );
    assert!(imports_of("src/repo/tests.rs", "use super::*;").is_empty());
    assert!(imports_of("src/repo/pack.rs", "pub(super) fn f() {}").is_empty());
}

#[test]
fn words_that_do_not_land_are_found() {
    let broken = |path: &str, text: &str| word_violations(&SourceFile::new(path, text)).len();
    assert_eq!(broken("src/repo/a.rs", "fn f() { unsafe { g() } }"), 1);
    assert_eq!(broken("src/repo/a.rs", "#![forbid(unsafe_code)] // unsafe"), 0);
    assert_eq!(broken("src/cli/a.rs", "fn f() { todo!() }"), 1);
    assert_eq!(broken("src/repo/a.rs", "fn f() { println!(); eprint!(\"\") }"), 2);
    assert_eq!(broken("src/cli/a.rs", "fn f() { println!() }"), 0);
    assert_eq!(broken("src/repo/a.rs", "#[cfg(test)] mod tests { fn f() { println!() } }\nfn g() {}"), 0);
    assert_eq!(broken("src/repo/a.rs", "#[cfg(test)] use x;\nfn g() { println!() }"), 1);
}
