//! Wrong requests about publishers and their credentials.

use serde_json::json;

use super::table::{Body, Case, Who, absent, invalid, refused};

const PUBLISHERS: &str = "/v1/publishers";

pub fn publishers() -> Vec<Case> {
    let new =
        |what, body, pointer| invalid(what, "POST", PUBLISHERS, body, pointer).by(Who::Operator);
    let slug = |what, slug: &str| new(what, json!({"slug": slug, "display_name": "x"}), "/slug");
    vec![
        new("no slug", json!({"display_name": "x"}), "/slug"),
        new("no name", json!({"slug": "new"}), "/display_name"),
        new(
            "an empty name",
            json!({"slug": "new", "display_name": ""}),
            "/display_name",
        ),
        new(
            "a long name",
            json!({"slug": "new", "display_name": "x".repeat(121)}),
            "/display_name",
        ),
        new(
            "a name that is a number",
            json!({"slug": "new", "display_name": 7}),
            "/display_name",
        ),
        new(
            "a name that is null",
            json!({"slug": "new", "display_name": null}),
            "/display_name",
        ),
        new(
            "an unknown field",
            json!({"slug": "new", "display_name": "x", "a": 1}),
            "/a",
        ),
        new("an array", json!([]), ""),
        new("a string", json!("x"), ""),
        new("null", json!(null), ""),
        new(
            "NUL in a name",
            json!({"slug": "new", "display_name": "a\u{0}b"}),
            "/display_name",
        ),
        slug("an empty slug", ""),
        slug("an upper-case slug", "New"),
        slug("a slug with a slash", "a/b"),
        slug("a slug with a look-alike", "n\u{435}w"),
        slug("a slug that begins with a hyphen", "-new"),
        slug("a slug with a line break", "new\n"),
        slug("a slug of 64 characters", &"a".repeat(64)),
        slug("a slug of 10 000 characters", &"a".repeat(10_000)),
        refused(
            "a slug in use",
            "POST",
            PUBLISHERS,
            Body::Json(json!({"slug": "acme", "display_name": "x"})),
            (409, "slug_taken", "-"),
        )
        .by(Who::Operator),
        invalid(
            "a quota below its least",
            "PATCH",
            "/v1/publishers/{publisher}",
            json!({"quotas": {"credentials_per_kind": 0}}),
            "/quotas/credentials_per_kind",
        )
        .by(Who::Operator),
        invalid(
            "a quota with a fraction",
            "PATCH",
            "/v1/publishers/{publisher}",
            json!({"quotas": {"pipelines": 1.5}}),
            "/quotas/pipelines",
        )
        .by(Who::Operator),
        invalid(
            "an own quota",
            "PATCH",
            "/v1/publishers/me",
            json!({"quotas": {}}),
            "/quotas",
        ),
        invalid(
            "a name taken away",
            "PATCH",
            "/v1/publishers/me",
            json!({"display_name": null}),
            "/display_name",
        ),
    ]
}

pub fn tokens() -> Vec<Case> {
    let mint = |what, body, pointer| {
        invalid(
            what,
            "POST",
            "/v1/publishers/me/tokens/runner",
            body,
            pointer,
        )
    };
    vec![
        mint("an empty name", json!({"name": ""}), "/name"),
        mint(
            "a time that is none",
            json!({"expires_at": "tomorrow"}),
            "/expires_at",
        ),
        mint(
            "a day without a time",
            json!({"expires_at": "2030-01-01"}),
            "/expires_at",
        ),
        mint(
            "a day that there is not",
            json!({"expires_at": "2030-02-30T00:00:00Z"}),
            "/expires_at",
        ),
        mint(
            "a time that is over",
            json!({"expires_at": "2020-01-01T00:00:00Z"}),
            "/expires_at",
        ),
        mint("no pipeline at all", json!({"pipelines": []}), "/pipelines"),
        mint(
            "a pipeline twice",
            json!({"pipelines": ["a", "a"]}),
            "/pipelines",
        ),
        mint(
            "a pipeline that is no slug",
            json!({"pipelines": ["a", "B"]}),
            "/pipelines/1",
        ),
        mint("the kind in the body", json!({"kind": "admin"}), "/kind"),
        invalid(
            "pipelines for an admin",
            "POST",
            "/v1/publishers/me/tokens/admin",
            json!({"pipelines": ["nightly"]}),
            "/pipelines",
        ),
        invalid(
            "a negative overlap",
            "POST",
            "/v1/publishers/me/tokens/admin/rotate",
            json!({"overlap_seconds": -1}),
            "/overlap_seconds",
        ),
        invalid(
            "an overlap of more than a week",
            "POST",
            "/v1/publishers/me/tokens/admin/rotate",
            json!({"overlap_seconds": 604_801}),
            "/overlap_seconds",
        ),
        invalid(
            "an overlap in words",
            "POST",
            "/v1/publishers/me/tokens/runner/{runner}/rotate",
            json!({"overlap_seconds": "1h"}),
            "/overlap_seconds",
        ),
        absent(
            "a kind that there is not",
            "POST",
            "/v1/publishers/me/tokens/root",
        ),
        absent(
            "another kind's token",
            "DELETE",
            "/v1/publishers/me/tokens/runner/{admin}",
        ),
        refused(
            "the last admin token",
            "DELETE",
            "/v1/publishers/me/tokens/admin/{admin}",
            Body::None,
            (409, "last_admin_token", "-"),
        ),
    ]
}
