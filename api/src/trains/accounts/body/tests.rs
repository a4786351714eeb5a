use domain::Code;
use poem_openapi::types::Example;

use super::*;

fn checked(body: NewAccountBody) -> Result<NewAccount, (Code, Vec<String>)> {
    body.checked(&outbound::Policy::default())
        .map_err(|problem| {
            let pointers = problem.errors.into_iter().map(|fault| fault.pointer);
            (problem.code, pointers.collect())
        })
}

fn oauth() -> NewAccountBody {
    NewAccountBody {
        credential_type: Word(CredentialType::Oauth),
        api_key: None,
        oauth: Some(OauthBody::example()),
        ..Example::example()
    }
}

#[test]
fn a_known_provider_says_where_and_how() {
    let new = checked(Example::example()).unwrap();
    assert_eq!(new.base_url, "https://api.anthropic.com");
    assert_eq!(
        (new.header.name.as_str(), new.header.scheme),
        ("x-api-key", None)
    );
    assert_eq!(checked(oauth()).unwrap().header, UpstreamHeader::bearer());
}

#[test]
fn what_is_said_counts_more_than_what_is_known() {
    let new = checked(NewAccountBody {
        base_url: Some("https://PROXY.example.com/v1/".into()),
        header: Some(HeaderBody {
            name: "Api-Key".into(),
            scheme: None,
        }),
        ..Example::example()
    })
    .unwrap();
    assert_eq!(new.base_url, "https://proxy.example.com/v1");
    assert_eq!(
        (new.header.name.as_str(), new.header.scheme),
        ("api-key", None)
    );
}

#[test]
fn an_unknown_provider_needs_a_url() {
    let body = NewAccountBody {
        provider: "local".into(),
        ..Example::example()
    };
    let needed = (Code::ValidationFailed, vec!["/base_url".to_owned()]);
    assert_eq!(checked(body.clone()).unwrap_err(), needed);
    let body = NewAccountBody {
        base_url: Some("https://models.example.com".into()),
        ..body
    };
    let new = checked(body).unwrap();
    assert_eq!(new.base_url, "https://models.example.com");
    assert_eq!(new.header, UpstreamHeader::bearer());
}

#[test]
fn a_credential_of_the_other_type_is_refused() {
    let key = Some(Sent::from("sk-0123456789"));
    let tokens = Some(OauthBody::example());
    for (credential_type, api_key, oauth, pointers) in [
        (CredentialType::ApiKey, None, None, &["/api_key"][..]),
        (
            CredentialType::ApiKey,
            key.clone(),
            tokens.clone(),
            &["/oauth"],
        ),
        (
            CredentialType::ApiKey,
            None,
            tokens.clone(),
            &["/oauth", "/api_key"],
        ),
        (CredentialType::Oauth, None, None, &["/oauth"]),
        (CredentialType::Oauth, key.clone(), tokens, &["/api_key"]),
        (CredentialType::Oauth, key, None, &["/api_key", "/oauth"]),
    ] {
        let body = NewAccountBody {
            credential_type: Word(credential_type),
            api_key,
            oauth,
            ..Example::example()
        };
        let pointers = pointers.iter().map(|pointer| (*pointer).to_owned());
        let expected = (Code::ValidationFailed, pointers.collect());
        assert_eq!(checked(body).unwrap_err(), expected);
    }
}

#[test]
fn urls_are_judged_by_the_guard() {
    let inside = "https://169.254.169.254/latest";
    let body = NewAccountBody {
        base_url: Some(inside.into()),
        ..Example::example()
    };
    let refused = |pointer: &str| (Code::DestinationRefused, vec![pointer.to_owned()]);
    assert_eq!(checked(body).unwrap_err(), refused("/base_url"));
    let mut body = oauth();
    body.oauth = Some(OauthBody {
        token_url: inside.into(),
        ..Example::example()
    });
    assert_eq!(checked(body).unwrap_err(), refused("/oauth/token_url"));
    let body = NewAccountBody {
        base_url: Some("https://example.com/?a=b".into()),
        ..Example::example()
    };
    assert_eq!(checked(body).unwrap_err(), refused("/base_url"));
}

#[test]
fn a_header_of_the_connection_carries_no_credential() {
    for name in [
        "Host",
        "content-length",
        "transfer-encoding",
        "x-a\r\nb",
        "",
    ] {
        let body = NewAccountBody {
            header: Some(HeaderBody {
                name: name.into(),
                scheme: None,
            }),
            ..Example::example()
        };
        let expected = (Code::ValidationFailed, vec!["/header/name".to_owned()]);
        assert_eq!(checked(body).unwrap_err(), expected, "{name:?}");
    }
}

#[test]
fn ceilings_are_merged_one_by_one() {
    let now = Ceilings {
        requests_5h: Some(1),
        tokens_5h: Some(2),
        ..Ceilings::default()
    };
    let patch = |ceilings| AccountPatchBody {
        ceilings,
        ..Example::example()
    };
    let wish = CeilingsPatchBody {
        requests_5h: MaybeUndefined::Null,
        tokens_5h: MaybeUndefined::Undefined,
        requests_7d: MaybeUndefined::Value(7),
        tokens_7d: MaybeUndefined::Undefined,
    };
    let merged = patch(MaybeUndefined::Value(wish)).over(now).ceilings;
    let expected = Ceilings {
        tokens_5h: Some(2),
        requests_7d: Some(7),
        ..Ceilings::default()
    };
    assert_eq!(merged, Some(expected));
    assert_eq!(patch(MaybeUndefined::Undefined).over(now).ceilings, None);
    let none = patch(MaybeUndefined::Null).over(now).ceilings;
    assert_eq!(none, Some(Ceilings::default()));
}
