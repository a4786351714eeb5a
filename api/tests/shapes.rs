//! Both derives on one small type: what an answer shows of a row, and its example.

use poem_openapi::{Enum, Object, types::Example};
use view_derive::{Example, View};

/// What the store returns.
#[derive(Clone)]
struct Row {
    title: &'static str,
    kind: RowKind,
    labels: Option<Vec<&'static str>>,
    bytes: u64,
}

#[derive(Clone, Copy)]
enum RowKind {
    Plain,
    Sealed,
}

#[derive(Enum, View, Debug, PartialEq)]
#[view(of = RowKind)]
enum Kind {
    Plain,
    Sealed,
}

#[derive(Object, View, Example, Debug, PartialEq)]
#[oai(example)]
#[view(of = Row)]
struct Thing {
    #[view(field = title)]
    #[example("Thing one")]
    name: String,
    #[example(RowKind::Plain)]
    kind: Kind,
    labels: Option<Vec<String>>,
    #[view(from = of.bytes > 1000)]
    large: bool,
}

#[test]
fn a_row_is_shown_and_has_an_example() {
    let row = Row {
        title: "x",
        kind: RowKind::Sealed,
        labels: Some(vec!["a"]),
        bytes: 2000,
    };
    let shown = Thing {
        name: "x".to_owned(),
        kind: Kind::Sealed,
        labels: Some(vec!["a".to_owned()]),
        large: true,
    };
    assert_eq!(Thing::from(&row), shown);
    assert_eq!(Thing::from(row), shown);
    let example = Thing {
        name: "Thing one".to_owned(),
        kind: Kind::Plain,
        labels: None,
        large: false,
    };
    assert_eq!(Thing::example(), example);
}
