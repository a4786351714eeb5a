use outbound::Policy;
use zeroize::Zeroizing;

use super::*;
use crate::import::files::CLIENT_KEYS;

fn sources(files: &[(&'static str, &str)]) -> InputFiles {
    let files = files.iter().map(|(name, text)| InputFile {
        name,
        bytes: Zeroizing::new(text.as_bytes().to_vec()),
    });
    InputFiles {
        files: files.collect(),
        warnings: Vec::new(),
    }
}

fn plan(files: &[(&'static str, &str)]) -> Result<Plan, Vec<String>> {
    let contract = api::compiled_contract().unwrap();
    let judge = Judge::new(&contract, Policy::default()).unwrap();
    let environment = |name: &str| {
        let value = match name {
            "KEY" => "sk-from-the-environment",
            "ODD" => "not one word",
            _ => return None,
        };
        Some(Zeroizing::new(value.to_owned()))
    };
    Plan::of(sources(files), &judge, &environment)
        .map_err(|faults| faults.iter().map(ToString::to_string).collect())
}

#[test]
fn things_are_named_as_the_report_names_them() {
    let keys = r#"{"client_keys": [
        {"train": "t", "key": "0123456789abcdef", "name": "first"},
        {"train": "t", "key": {"env": "KEY"}}
    ]}"#;
    let plan = plan(&[
        (TRAINS, r#"{"trains": [{"slug": "t"}]}"#),
        (CLIENT_KEYS, keys),
    ])
    .ok()
    .unwrap();
    assert_eq!(plan.trains[0].0, "t");
    let names: Vec<_> = plan.client_keys.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["t first", "t /client_keys/1"]);
    assert!(plan.accounts.is_empty());
}

#[test]
fn what_stands_twice_is_a_fault() {
    let key = r#"{"train": "t", "key": "0123456789abcdef"}"#;
    let faults = plan(&[
        (TRAINS, r#"{"trains": [{"slug": "t"}, {"slug": "t"}]}"#),
        (
            CLIENT_KEYS,
            &format!(r#"{{"client_keys": [{key}, {key}]}}"#),
        ),
    ]);
    let expected = [
        "trains.json /trains/1/slug: The file has this slug twice.",
        "client-keys.json /client_keys/1: The file has this key twice.",
    ];
    assert_eq!(faults.err().unwrap(), expected);
}

#[test]
fn a_file_is_one_list_and_a_fault_of_it_repeats_nothing() {
    for text in [
        "[]",
        "{}",
        r#"{"train": []}"#,
        r#"{"trains": {}}"#,
        r#"{"trains": [], "sk-secret-in-the-wrong-place": "t"}"#,
    ] {
        let faults = plan(&[(TRAINS, text)]).err().unwrap();
        assert_eq!(faults.len(), 1, "{text}");
        assert!(
            faults[0].starts_with("trains.json: must be an object"),
            "{faults:?}"
        );
        assert!(!faults[0].contains("secret"), "{faults:?}");
    }
    let faults = plan(&[(TRAINS, r#"{"trains": [], "trains": []}"#)]);
    assert!(faults.err().unwrap()[0].contains("twice"));
}

#[test]
fn more_items_than_may_be_are_refused() {
    let items = vec!["1"; ITEMS_MAX + 1].join(",");
    let faults = plan(&[(TRAINS, &format!(r#"{{"trains": [{items}]}}"#))]);
    assert!(faults.err().unwrap()[0].contains("more than 10000 items"));
}

#[test]
fn a_credential_that_is_named_and_not_there_is_one_fault() {
    let text = r#"{"accounts": [{"name": "a", "provider": "openai", "credential_type": "api_key",
        "api_key": {"env": "NO_SUCH"}, "enabled": 1}]}"#;
    let faults = plan(&[(ACCOUNTS, text)]).err().unwrap();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("accounts.json /accounts/0/enabled"));
    assert!(faults[1].starts_with("accounts.json /accounts/0/api_key: The environment"));
    // What a variable holds is judged like what is written out.
    let faults = plan(&[(
        ACCOUNTS,
        &text.replace("NO_SUCH", "ODD").replace(": 1", ": true"),
    )]);
    let faults = faults.err().unwrap();
    assert!(faults[0].contains("`api_key` must match"), "{faults:?}");
    assert!(!faults[0].contains("one word"), "{faults:?}");
}
