//! The strict reader against the plain one, and callers' own JSON to the byte.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::sample::published;

const DATA: Shape = Shape::Members(&[("data", Shape::Text), ("error", Shape::Object)]);

fn tree(text: &str) -> Result<Value, Problem> {
    parse(text.as_bytes(), &Shape::Tree).map(|parsed| parsed.tree)
}

fn refusal(text: &str) -> String {
    let problem = tree(text).unwrap_err();
    assert_eq!(problem.code, Code::MalformedJson);
    problem.detail
}

/// What a body with this data is refused for.
fn refused_data(data: &str) -> Problem {
    parse(format!("{{\"data\":{data}}}").as_bytes(), &DATA).unwrap_err()
}

#[test]
fn says_where_it_stopped() {
    assert_eq!(refusal("{\n  \"a\" 1}"), "Line 2, column 7: expected `:`.");
    assert_eq!(
        refusal(r#"{"a":1,"a":2}"#),
        "Line 1, column 10: a member name stands twice in one object."
    );
    assert!(refusal("1 2").contains("trailing characters"));
    assert!(refusal("").contains("EOF"));
}

#[test]
fn says_where_it_stopped_within_what_stays_text() {
    // The same places as if it were no text.
    for body in [
        "{\"data\":{\"a\":1,\"a\":2}}",
        "{\"x\":1,\n \"data\": {\"a\":1,\"\\u0061\":2}}",
        "{\"x\":1,\n \"data\": [\n  {\"a\":1,\n   \"a\":2}]}",
        "{\"data\":1e400}",
        "{\"data\":[\"\\ud800\"]}",
    ] {
        let as_tree = parse(body.as_bytes(), &Shape::Tree).unwrap_err();
        let as_text = parse(body.as_bytes(), &DATA).unwrap_err();
        assert_eq!(as_text.code, as_tree.code, "{body}");
        assert_eq!(as_text.detail, as_tree.detail, "{body}");
    }
    // What is no JSON at all is told in other words.
    for body in [
        "{\"data\":[01]}",
        "{\"data\":[1,]}",
        "{\"data\":[1}",
        "{\"data\":",
    ] {
        let problem = parse(body.as_bytes(), &DATA).unwrap_err();
        assert_eq!(problem.code, Code::MalformedJson, "{body}");
    }
}

#[test]
fn depth_is_limited_exactly() {
    let nest = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    assert!(tree(&nest(JSON_DEPTH)).is_ok());
    assert!(refusal(&nest(JSON_DEPTH + 1)).contains("more than 32 levels"));
    assert!(refusal(&"[".repeat(1_000_000)).contains("more than 32 levels"));
    let within = format!("{{\"data\":{}}}", nest(JSON_DEPTH - 1));
    assert!(parse(within.as_bytes(), &DATA).is_ok());
    let problem = refused_data(&nest(JSON_DEPTH));
    assert!(problem.detail.contains("more than 32 levels"));
    assert!(
        refused_data(&"[".repeat(1_000_000)).code == Code::MalformedJson,
        "and no deeper in the program than that"
    );
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let problem = parse(b"{\"a\":\"\xff\"}", &Shape::Tree).unwrap_err();
    assert_eq!(problem.detail, "The body is not UTF-8, from byte 6 on.");
}

#[test]
fn a_tree_has_a_limit_and_text_has_none() {
    let list = |count: usize| format!("[{}]", vec!["1"; count].join(","));
    assert!(tree(&list(BODY_VALUES - 1)).is_ok());
    let problem = tree(&list(BODY_VALUES)).unwrap_err();
    let fault = &problem.errors[0];
    assert_eq!(
        (fault.pointer.as_str(), fault.code.as_str()),
        ("", "too_many_values")
    );
    let many = list(100_000);
    let body = format!("{{\"data\":{many},\"error\":{{\"a\":{many},\"message\":\"x\"}}}}");
    let parsed = parse(body.as_bytes(), &DATA).unwrap();
    assert_eq!(parsed.tree["data"], many);
    assert_eq!(parsed.tree["error"], json!({"a": [], "message": "x"}));
    let members: Vec<String> = (0..BODY_VALUES).map(|at| format!("\"{at}\":0")).collect();
    let body = format!("{{\"error\":{{{}}}}}", members.join(","));
    let problem = parse(body.as_bytes(), &DATA).unwrap_err();
    assert_eq!(problem.errors[0].code.as_str(), "too_many_values");
}

#[test]
fn what_the_contract_judges_of_an_object_gives_way_to_its_text() {
    let error = "{ \"n\": 1.0, \"b\":[1], \"o\" :{\"x\":1}, \"message\":\"\\u0061\", \"z\":null}";
    let parsed = parse(format!("{{\"error\": {error} }}").as_bytes(), &DATA).unwrap();
    let expected = json!({"n": 1.0, "b": [], "o": {}, "message": "a", "z": null});
    assert_eq!(parsed.tree["error"], expected);
    assert_eq!(parsed.into_value()["error"], error);
    for (other, judged) in [
        ("[1]", json!([])),
        ("\"x\"", json!("x")),
        ("null", json!(null)),
    ] {
        let parsed = parse(format!("{{\"error\":{other}}}").as_bytes(), &DATA).unwrap();
        assert_eq!(parsed.tree["error"], judged);
    }
}

#[test]
fn a_nul_is_told_where_it_is() {
    let body =
        r#"{"data":{"a":["x","\u0000"],"b/\u0000":1,"c/~":"\u0000"},"error":{"m":"\u0000"}}"#;
    let parsed = parse(body.as_bytes(), &DATA).unwrap();
    let found: Vec<(&str, bool)> = parsed
        .faults
        .iter()
        .map(|fault| (fault.pointer.as_str(), fault.detail == NUL_IN_NAME))
        .collect();
    let expected = [
        ("/data/a/1", false),
        ("/data", true),
        ("/data/c~1~0", false),
        ("/error/m", false),
    ];
    assert_eq!(found, expected);
    assert!(
        parse(br#"{"data":"\u0001"}"#, &DATA)
            .unwrap()
            .faults
            .is_empty()
    );
}

#[test]
fn many_members_are_told_apart() {
    let members = |count: usize| (0..count).map(|at| format!("\"k{at}\":{at}"));
    let all = |count| members(count).collect::<Vec<_>>().join(",");
    assert!(parse(format!("{{\"data\":{{{}}}}}", all(1000)).as_bytes(), &DATA).is_ok());
    for again in [0, 5, 15, 16, 17, 500] {
        let problem = refused_data(&format!("{{{},\"k{again}\":0}}", all(600)));
        assert!(problem.detail.contains("stands twice"), "{again}");
    }
}

/// Whether the body is refused when all of it becomes a tree.
fn is_refused(text: &str) -> bool {
    parse(text.as_bytes(), &Shape::Tree).is_err()
}

proptest! {
    #[test]
    fn agrees_with_the_plain_parser(text in r#"[\[\]{}:,"a1.e \-tfn\\u0]{0,40}"#) {
        if let Ok(strict) = tree(&text) {
            let plain: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(strict, plain);
        }
    }

    /// What stays text is refused for what a tree is refused for, and else kept to the byte.
    #[test]
    fn text_is_taken_as_a_tree_is(
        text in r#"(\{"a[0-2]?": ?|\[|\]|\}|,"a[0-2]": ?|,|"[a\\u00n/]{0,6}"|-?[0-9]{1,22}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?|null|true|[ \t\r\n]){0,12}"#,
    ) {
        let body = format!("{{\"data\":{text}}}");
        let as_tree = parse(body.as_bytes(), &Shape::Tree);
        let as_text = parse(body.as_bytes(), &DATA);
        match (as_tree, as_text) {
            (Ok(_), Ok(parsed)) => {
                if text.trim() != "null" && !text.contains(",\"a") {
                    prop_assert_eq!(&parsed.tree["data"], &Value::from(text.trim()));
                }
            }
            (Err(tree), Err(text)) => prop_assert_eq!(tree.code, text.code),
            (tree, text) => prop_assert!(false, "{body}: {tree:?} {text:?}"),
        }
        prop_assert_eq!(is_refused(&body), parse(body.as_bytes(), &DATA).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes, &Shape::Tree);
        let _ = parse(&bytes, &Shape::Text);
        let _ = parse(&bytes, &DATA);
    }
}

/// Every place of requests at which the contract takes anything, but for the members that an
/// object may have beside those that are named.
fn open_places(schema: &Value, document: &Value, at: &str, found: &mut Vec<String>) {
    let name = schema["$ref"].as_str().and_then(|to| to.rsplit('/').next());
    let schema = name.map_or(schema, |name| &document["components"]["schemas"][name]);
    let judging = ["type", "enum", "const", "anyOf", "oneOf", "allOf"];
    if judging.iter().all(|word| schema[word].is_null()) {
        found.push(at.to_owned());
    }
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        open_places(member, document, &format!("{at}/{name}"), found);
    }
    if !schema["items"].is_null() {
        open_places(&schema["items"], document, &format!("{at}/*"), found);
    }
    for word in ["anyOf", "oneOf", "allOf"] {
        for part in schema[word].as_array().into_iter().flatten() {
            open_places(part, document, at, found);
        }
    }
}

fn places_of(shape: &Shape, at: &str, found: &mut Vec<String>) {
    match shape {
        Shape::Tree | Shape::Object => {}
        Shape::Text => found.push(at.to_owned()),
        Shape::Members(members) => {
            for (name, shape) in *members {
                places_of(shape, &format!("{at}/{name}"), found);
            }
        }
        Shape::Items(shape) => places_of(shape, &format!("{at}/*"), found),
    }
}

#[test]
fn whatever_the_contract_takes_as_it_comes_stays_text() {
    let document = published();
    let mut seen = HashSet::new();
    for path in document["paths"].as_object().unwrap().values() {
        for operation in path.as_object().unwrap().values() {
            let media = operation["requestBody"]["content"].as_object();
            for (_, media) in media.into_iter().flatten() {
                let name = media["schema"]["$ref"].as_str().unwrap_or_default();
                let name = name.rsplit('/').next().unwrap_or_default().to_owned();
                // What is passed on without a look is no JSON to us.
                if name == "AnyBody" {
                    continue;
                }
                let (mut open, mut text) = (Vec::new(), Vec::new());
                open_places(&media["schema"], &document, "", &mut open);
                places_of(shape_of(&name), "", &mut text);
                open.sort();
                open.dedup();
                text.sort();
                assert_eq!(open, text, "{name}");
                seen.insert(name);
            }
        }
    }
    for (name, _) in SHAPES {
        assert!(seen.contains(name), "no request has {name}");
    }
}
