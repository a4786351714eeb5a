//! The bounds of the document against the constants that mean them. A validator of poem-openapi
//! takes literals alone, so no type ties the two together.

use serde_json::Value;

use domain::limits::{
    CLAIM_MAX, CLAIM_WAIT_SECONDS, DESCRIPTION_CHARS, EXTERNAL_ID_CHARS, FILTERS, HEADERS,
    NAME_CHARS, OVERLAP_SECONDS, PUBLISH_EVENTS, SCOPES, SUBCOMMANDS, TOKEN_PIPELINES,
    TRAIN_PRIORITY_MAX, URL_CHARS,
};

/// The members of schemas that a constant bounds: `*` stands for every schema of a request.
fn bounds() -> Vec<(&'static str, &'static str, &'static str, usize)> {
    let seconds = |seconds: u32| usize::try_from(seconds).unwrap();
    vec![
        ("*", "description", "maxLength", DESCRIPTION_CHARS),
        ("*", "display_name", "maxLength", NAME_CHARS),
        ("*", "external_id", "maxLength", EXTERNAL_ID_CHARS),
        ("*", "url", "maxLength", URL_CHARS),
        ("*", "base_url", "maxLength", URL_CHARS),
        ("*", "token_url", "maxLength", URL_CHARS),
        ("*", "overlap_seconds", "maximum", seconds(OVERLAP_SECONDS)),
        ("ClaimBody", "max", "maximum", seconds(CLAIM_MAX)),
        (
            "ClaimBody",
            "wait_seconds",
            "maximum",
            seconds(CLAIM_WAIT_SECONDS),
        ),
        ("NewCredential", "pipelines", "maxItems", TOKEN_PIPELINES),
        (
            "RotateCredentials",
            "pipelines",
            "maxItems",
            TOKEN_PIPELINES,
        ),
        ("NewEvents", "events", "maxItems", PUBLISH_EVENTS),
        ("NewOauthCredential", "scopes", "maxItems", SCOPES),
        ("NewReplay", "event_types", "maxItems", FILTERS),
        ("NewWebhookEndpoint", "event_types", "maxItems", FILTERS),
        ("NewWebhookEndpoint", "pipelines", "maxItems", FILTERS),
        ("NewWebhookEndpoint", "headers", "maxProperties", HEADERS),
        ("WebhookEndpointPatch", "event_types", "maxItems", FILTERS),
        ("WebhookEndpointPatch", "pipelines", "maxItems", FILTERS),
        (
            "PipelineDefinition",
            "subcommands",
            "maxProperties",
            SUBCOMMANDS,
        ),
        (
            "TrainPlace",
            "priority",
            "maximum",
            usize::from(TRAIN_PRIORITY_MAX),
        ),
    ]
}

/// The bounds that a member has, its form without null among them.
fn found<'a>(schema: &'a Value, keyword: &str) -> Vec<&'a Value> {
    let branches = schema["anyOf"].as_array().into_iter().flatten();
    let all = std::iter::once(schema).chain(branches);
    all.filter_map(|schema| schema.get(keyword)).collect()
}

#[test]
fn the_document_has_the_bounds_that_the_constants_name() {
    let document = crate::openapi_document();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for (name, member, keyword, bound) in bounds() {
        let meant = schemas
            .iter()
            .filter(|(own, _)| name == "*" || name == *own);
        let meant: Vec<&Value> = meant
            .flat_map(|(_, schema)| found(&schema["properties"][member], keyword))
            .collect();
        assert!(!meant.is_empty(), "{name} has no bounded member {member}");
        for value in meant {
            assert_eq!(value.as_u64(), u64::try_from(bound).ok(), "{name}.{member}");
        }
    }
}
