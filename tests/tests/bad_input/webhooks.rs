//! Own events, their types, replays, secrets of endpoints.

use serde_json::json;

use super::table::{Body, Case, Who, absent, get, invalid, refused};

pub fn all() -> Vec<Case> {
    let mut all = events();
    all.extend(endpoints());
    all
}

fn events() -> Vec<Case> {
    let event = |what, body, pointer| invalid(what, "POST", "/v1/events", body, pointer);
    let described = "/v1/event-types/order.paid";
    let describe = |what, body, pointer| invalid(what, "PUT", described, body, pointer);
    let good = json!({"type": "a.b", "data": 1});
    let reserved = refused(
        "a type of the service's is described",
        "PUT",
        "/v1/event-types/run.mine",
        Body::Json(json!({})),
        (400, "invalid_parameter", "/path/type"),
    );
    vec![
        event("no data", json!({"type": "a.b"}), "/data").by(Who::Runner),
        event(
            "a reserved type",
            json!({"type": "run.x", "data": 1}),
            "/type",
        ),
        event("no type's form", json!({"type": "A", "data": 1}), "/type"),
        event("an empty list", json!({"events": []}), "/events"),
        event(
            "an unknown member in a list",
            json!({"events": [good, {"type": "a.b", "data": 1, "x": 1}]}),
            "/events/1/x",
        ),
        event(
            "a pipeline that is not there",
            json!({"type": "a.b", "data": 1, "pipeline": "gone"}),
            "/pipeline",
        ),
        reserved,
        describe(
            "no schema",
            json!({"schema": {"type": "text"}}),
            "/schema/type",
        ),
        describe(
            "an example that does not fit",
            json!({"schema": {"type": "object"}, "example": 1}),
            "/example",
        ),
        absent(
            "a type nobody described",
            "GET",
            "/v1/event-types/none.such",
        ),
    ]
}

fn endpoints() -> Vec<Case> {
    let replays = "/v1/webhook-endpoints/{endpoint}/replays";
    let replay = |what, body, pointer| invalid(what, "POST", replays, body, pointer);
    vec![
        replay("no beginning", json!({}), "/since"),
        replay(
            "a beginning to come",
            json!({"since": "2999-01-01T00:00:00Z"}),
            "/since",
        ),
        replay(
            "no filter",
            json!({"since": "2026-01-01T00:00:00Z", "event_types": ["*.x"]}),
            "/event_types/0",
        ),
        absent(
            "a replay that is not there",
            "GET",
            "/v1/webhook-endpoints/{endpoint}/replays/rpl_01h455vb4pex5vsknk084sn02q",
        ),
        invalid(
            "too long an overlap",
            "POST",
            "/v1/webhook-endpoints/{endpoint}/secrets/rotate",
            json!({"overlap_seconds": 604_801}),
            "/overlap_seconds",
        ),
        absent(
            "a secret that is not there",
            "DELETE",
            "/v1/webhook-endpoints/{endpoint}/secrets/sec_01h455vb4pex5vsknk084sn02q",
        ),
    ]
}

pub fn listening() -> Vec<Case> {
    vec![
        get(
            "a hole between filters",
            "/v1/listen?event_types=a,,b",
            "/query/event_types",
        ),
        get(
            "listening for no time",
            "/v1/listen?seconds=0",
            "/query/seconds",
        ),
        get(
            "no place in a stream",
            "/v1/listen",
            "/header/Last-Event-ID",
        )
        .header("last-event-id", "7"),
    ]
}
