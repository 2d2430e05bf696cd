//! Which paths a `files` source leaves out.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::{Error, Kind, Result};

/// Patterns of paths to leave out, a small part of what `.gitignore` knows:
///
/// - `*` and `?` stand for any text and any byte within a name, `[a-z]` for one of a set, `{a,b}` for alternatives, `**` for any folders;
/// - a pattern without `/` matches the name anywhere in the tree; one with `/` the whole path below the root (a leading `/`
///   only says that);
/// - a trailing `/` matches folders only. A folder that is left out is not looked into.
#[derive(Debug, Clone, Default)]
pub struct Exclude {
    names: GlobSet,
    paths: GlobSet,
    folder_names: GlobSet,
    folder_paths: GlobSet,
}

impl Exclude {
    /// Compiles patterns.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming the pattern that is not one.
    pub fn new(patterns: &[String]) -> Result<Self> {
        // Names, paths, names of folders, paths of folders.
        let mut sets: [GlobSetBuilder; 4] = std::array::from_fn(|_| GlobSetBuilder::new());
        for pattern in patterns {
            let (body, folders_only) = match pattern.strip_suffix('/') {
                Some(body) => (body, true),
                None => (pattern.as_str(), false),
            };
            let by_path = body.contains('/');
            let body = body.strip_prefix('/').unwrap_or(body);
            let bad = |why: String| {
                Error::new(Kind::Usage, format!("exclude pattern {pattern:?} {why}"))
                    .hint("write a glob such as \"*.tmp\", \"cache/\" or \"/var/**/*.log\"")
            };
            if body.is_empty() {
                return Err(bad("matches nothing".into()));
            }
            let glob = GlobBuilder::new(body)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|error| bad(error.kind().to_string()))?;
            sets[usize::from(folders_only) * 2 + usize::from(by_path)].add(glob);
        }
        let build =
            |set: &GlobSetBuilder| set.build().map_err(|error| Error::new(Kind::Usage, "compile the exclude patterns").because(error));
        Ok(Self { names: build(&sets[0])?, paths: build(&sets[1])?, folder_names: build(&sets[2])?, folder_paths: build(&sets[3])? })
    }

    /// Whether this path, whose last part is `name`, is left out.
    pub fn matches(&self, path: &[u8], name: &[u8], is_folder: bool) -> bool {
        let hit = |set: &GlobSet, text: &[u8]| !set.is_empty() && set.is_match(OsStr::from_bytes(text));
        hit(&self.names, name) || hit(&self.paths, path) || (is_folder && (hit(&self.folder_names, name) || hit(&self.folder_paths, path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(pattern: &str, path: &str, is_folder: bool) -> bool {
        let name = path.rsplit('/').next().unwrap();
        Exclude::new(&[pattern.to_owned()]).unwrap().matches(path.as_bytes(), name.as_bytes(), is_folder)
    }

    #[test]
    fn patterns() {
        let table = [
            ("*.tmp", "a.tmp", false, true),
            ("*.tmp", "deep/er/a.tmp", false, true),
            ("*.tmp", "a.tmp.txt", false, false),
            ("/a.tmp", "a.tmp", false, true),
            ("/a.tmp", "deep/a.tmp", false, false),
            ("cache/", "x/cache", true, true),
            ("cache/", "x/cache", false, false),
            ("/x/cache/", "x/cache", true, true),
            ("/x/cache/", "y/x/cache", true, false),
            ("x/*.log", "x/a.log", false, true),
            ("x/*.log", "x/y/a.log", false, false),
            ("x/**/*.log", "x/y/z/a.log", false, true),
            ("x/**/*.log", "x/a.log", false, true),
            ("{a,b}.txt", "b.txt", false, true),
            ("[ab].txt", "c.txt", false, false),
            ("**/node_modules", "p/q/node_modules", true, true),
            ("*", ".hidden", false, true),
            ("名*", "dir/名片", false, true),
        ];
        for (pattern, path, is_folder, expected) in table {
            assert_eq!(excluded(pattern, path, is_folder), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn names_that_are_not_utf8_match_too() {
        let exclude = Exclude::new(&["*.tmp".into()]).unwrap();
        assert!(exclude.matches(b"\xff\xfe.tmp", b"\xff\xfe.tmp", false));
    }

    #[test]
    fn a_bad_pattern_is_named() {
        for pattern in ["[", "", "/", "{a"] {
            let error = Exclude::new(&[pattern.to_owned()]).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(&format!("{pattern:?}")), "{error}");
        }
    }
}
