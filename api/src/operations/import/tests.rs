use super::*;

fn judge() -> Judge {
    let contract = crate::compiled_contract().unwrap();
    Judge::new(&contract, outbound::Policy::default()).unwrap()
}

fn account() -> Value {
    json!({
        "name": "a",
        "provider": "anthropic",
        "credential_type": "api_key",
        "api_key": "sk-ant-0123456789",
    })
}

fn pointers(faults: &[FieldError]) -> Vec<&str> {
    faults.iter().map(|fault| fault.pointer.as_str()).collect()
}

#[test]
fn an_account_is_what_a_request_takes_and_what_is_left_out_is_not_wished_for() {
    let judge = judge();
    let wish = judge.account(&mut account()).unwrap();
    assert_eq!(wish.new.base_url, "https://api.anthropic.com");
    assert_eq!((wish.enabled, wish.ceilings), (None, None));
    let mut item = account();
    item["enabled"] = json!(false);
    item["ceilings"] = Value::Null;
    let wish = judge.account(&mut item).unwrap();
    assert_eq!(wish.enabled, Some(false));
    assert!(wish.ceilings.is_some());
}

#[test]
fn all_faults_of_an_item_are_found_and_nothing_is_repeated() {
    let mut item = account();
    item["api_key"] = json!("short");
    item["enabled"] = json!("sk-secret-0123456789");
    item["sk-secret-0123456789"] = json!(1);
    item["base_uri"] = json!(1);
    item["name"] = json!("a\0");
    let faults = judge().account(&mut item).unwrap_err();
    let mut found = pointers(&faults);
    found.sort_unstable();
    assert_eq!(found, ["", "/api_key", "/base_uri", "/enabled", "/name"]);
    assert!(!format!("{faults:?}").contains("secret"));
    assert_eq!(item["api_key"], "short", "left for the caller to wipe");
    let faults = judge().account(&mut json!("sk-secret")).unwrap_err();
    assert_eq!(faults[0].detail, "It must be an object, not a string.");
}

#[test]
fn a_destination_is_judged() {
    let mut item = account();
    item["base_url"] = json!("https://127.0.0.1");
    let faults = judge().account(&mut item).unwrap_err();
    assert_eq!(pointers(&faults), ["/base_url"]);
}

#[test]
fn a_train_has_what_it_lends() {
    let judge = judge();
    let wish = judge.train(&mut json!({"slug": "t"})).unwrap();
    assert_eq!(
        (wish.enabled, wish.sticky, wish.accounts),
        (None, None, None)
    );
    assert!(wish.description.is_none() && wish.slack.is_none());
    let mut item = json!({
        "slug": "t",
        "description": null,
        "slack": null,
        "sticky": false,
        "accounts": [{"account": "a", "priority": 1.0}, {"account": "b", "priority": 0}],
    });
    item = parse(item.to_string().as_bytes()).unwrap();
    let wish = judge.train(&mut item).unwrap();
    assert_eq!(wish.description, Some(None));
    assert!(matches!(wish.slack, Some(None)));
    assert_eq!(wish.sticky, Some(false));
    assert_eq!(wish.accounts.unwrap(), [("a".into(), 1), ("b".into(), 0)]);

    let mut item = json!({"slug": "T", "accounts": [{"account": "a"}, {"priority": 1000}]});
    let faults = judge.train(&mut item).unwrap_err();
    let mut found = pointers(&faults);
    found.sort_unstable();
    let all = [
        "/accounts/0/priority",
        "/accounts/1/account",
        "/accounts/1/priority",
        "/slug",
    ];
    assert_eq!(found, all);
    let twice = json!({"account": "a", "priority": 0});
    let mut item = json!({"slug": "t", "accounts": [twice, twice]});
    let faults = judge.train(&mut item).unwrap_err();
    assert_eq!(pointers(&faults), ["/accounts/1/account"]);
}

#[test]
fn a_key_is_known_by_its_hash_however_it_comes() {
    let judge = judge();
    let key = "any=form/of+a~key";
    let mut plain = json!({"train": "t", "key": key, "name": "n"});
    let plain = judge.client_key(&mut plain).unwrap();
    assert_eq!(
        (plain.last_four.as_str(), plain.name.as_deref()),
        ("~key", Some("n"))
    );
    let hash = plain.hash.as_bytes();
    let digits: Vec<String> = hash.iter().map(|byte| format!("{byte:02X}")).collect();
    let hash = digits.concat();
    let mut hashed = json!({"train": "t", "sha256": hash});
    let hashed = judge.client_key(&mut hashed).unwrap();
    assert_eq!(hashed.hash, plain.hash);
    assert_eq!(hashed.last_four, UNKNOWN_LAST_FOUR);
    assert_eq!(plain.hash, TokenHash::of(key));
}

#[test]
fn keys_that_can_not_be_a_client_s_are_refused() {
    let judge = judge();
    let hash = "0".repeat(64);
    for (item, pointer) in [
        (json!({"train": "t", "key": "fifteen-chars-x"}), "/key"),
        (json!({"train": "t", "key": "x".repeat(513)}), "/key"),
        (json!({"train": "t", "key": "has a space in it"}), "/key"),
        (json!({"train": "t", "key": "stm_admin_0123456789"}), "/key"),
        (json!({"train": "t", "key": "whsec_0123456789abc"}), "/key"),
        (json!({"train": "t"}), "/key"),
        (json!({"train": "t", "sha256": "abc"}), "/sha256"),
        (
            json!({"train": "t", "key": "x".repeat(16), "sha256": hash}),
            "/sha256",
        ),
        (
            json!({"train": "t", "key": "x".repeat(16), "last_four": "xxxx"}),
            "/last_four",
        ),
        (
            json!({"train": "t", "sha256": hash, "last_four": "xxx"}),
            "/last_four",
        ),
        (json!({"key": "x".repeat(16)}), "/train"),
    ] {
        let faults = judge.client_key(&mut item.clone()).unwrap_err();
        assert_eq!(pointers(&faults), [pointer], "{item}");
    }
    for key in ["ptk_0123456789ab", &"x".repeat(512)] {
        assert!(
            judge
                .client_key(&mut json!({"train": "t", "key": key}))
                .is_ok()
        );
    }
}
