//! The values of the chart `mailbell`, as `values.yaml` and its comments say them.

use serde_json::{Map, Value, json};

use crate::chart;

/// One value, or several that have one comment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Documented {
    /// Such as `["image", "tag"]`.
    pub(crate) path: Vec<String>,
    /// What is said of it; empty: nothing.
    pub(crate) text: String,
    pub(crate) default: Value,
}

impl Documented {
    pub(crate) fn name(&self) -> String {
        self.path.join(".")
    }
}

pub(crate) fn file(name: &str) -> String {
    std::fs::read_to_string(chart("mailbell").join(name)).unwrap()
}

pub(crate) fn parsed(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap()
}

/// Every value with the comment above it, in the order of the file. An object without a comment is told value by value.
pub(crate) fn documented(yaml: &str) -> Vec<Documented> {
    let defaults = parsed(yaml);
    let mut found: Vec<Documented> = Vec::new();
    // The names of the objects that the line is in, with how far each is indented.
    let mut parents: Vec<(usize, String)> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in yaml.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(said) = text.strip_prefix('#') {
            comment.push(said.trim());
            continue;
        }
        let said = std::mem::take(&mut comment).join(" ");
        let Some((name, _)) = text.split_once(':') else {
            continue;
        };
        parents.retain(|(outer, _)| *outer < indent);
        parents.push((indent, name.to_owned()));
        let path: Vec<String> = parents.iter().map(|(_, name)| name.clone()).collect();
        let inside = |it: &Documented| !it.text.is_empty() && path.starts_with(&it.path);
        if let Some(outer) = found.iter().find(|it| inside(it)) {
            assert!(
                said.is_empty(),
                "{}: it has a comment already, at {}: say it at one of both",
                path.join("."),
                outer.name()
            );
            continue;
        }
        let default = defaults.pointer(&format!("/{}", path.join("/")));
        let default = default.unwrap().clone();
        let has_parts = default.as_object().is_some_and(|parts| !parts.is_empty());
        if !has_parts || !said.is_empty() {
            found.push(Documented {
                path,
                text: said,
                default,
            });
        }
    }
    found
}

/// This value alone.
pub(crate) fn only(path: &[String], value: Value) -> Value {
    let wrap = |inner: Value, name: &String| json!({ name: inner });
    path.iter().rev().fold(value, wrap)
}

/// The names of an object.
pub(crate) fn names(object: &Map<String, Value>) -> Vec<&str> {
    object.keys().map(String::as_str).collect()
}

#[test]
fn a_comment_is_of_what_comes_after_it() {
    let found = documented(
        "# Of the file.\n\na:\n  # First,\n  # in two lines.\n  b: 1\n  c: x\n\n# Both.\nd:\n  e: 1\n  f: {}\ng: []\n",
    );
    let of = |path: &[&str], text: &str, default: Value| Documented {
        path: path.iter().map(|&name| name.to_owned()).collect(),
        text: text.to_owned(),
        default,
    };
    assert_eq!(
        found,
        [
            of(&["a", "b"], "First, in two lines.", json!(1)),
            of(&["a", "c"], "", json!("x")),
            of(&["d"], "Both.", json!({ "e": 1, "f": {} })),
            of(&["g"], "", json!([])),
        ]
    );
}
