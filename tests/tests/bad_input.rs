//! Requests that are wrong, each in its own way: the answer names the fault and where it is, and
//! nothing changes.

#[expect(clippy::too_many_lines, reason = "a table is as long as what it lists")]
mod accounts;
mod frame;
mod logins;
mod raw;
mod table;
mod trains;
mod webhooks;
#[expect(clippy::too_many_lines, reason = "a table is as long as what it lists")]
mod work;

use serde_json::{Value, json};
use tests::{Consumer, Publisher, Server, World, on_both_stores};

use table::{Body, Case, Who};

on_both_stores!(each_wrong_request_is_named_and_changes_nothing);

/// What cases refer to as `{run}`, `{claim}`, `{endpoint}`, `{delivery}`, `{event}`,
/// `{account}`, `{train}`.
struct Names(Vec<(&'static str, String)>);

impl Names {
    fn fill(&self, text: &str) -> String {
        let fill = |text: String, (name, value): &(&str, String)| text.replace(name, value);
        self.0.iter().fold(text.to_owned(), fill)
    }
}

async fn each_wrong_request_is_named_and_changes_nothing(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let names = things(&publisher).await;
    let cases: Vec<Case> = table::all();
    assert!(cases.len() >= 60, "only {} cases", cases.len());
    let before = everything(&server, &publisher).await;
    let mut wrong = Vec::new();
    for case in &cases {
        wrong.extend(tried(&server, &publisher, &names, case).await);
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    assert_eq!(
        everything(&server, &publisher).await,
        before,
        "something changed"
    );
}

async fn things(publisher: &Publisher) -> Names {
    let consumer = Consumer::start().await;
    publisher.pipeline("nightly").await;
    let typed = json!({
        "display_name": "Typed",
        "input_schema": {
            "type": "object",
            "required": ["day"],
            "properties": {"day": {"type": "string"}, "parts": {"type": "array", "maxItems": 2}},
        },
    });
    publisher
        .admin
        .put("/v1/pipelines/typed")
        .json(&typed)
        .expect(201)
        .await;
    let endpoint = publisher.endpoint(&consumer, &["run.succeeded"]).await;
    publisher.finished_run("nightly").await;
    let event = consumer.event("run.succeeded").await;
    let (run, claim) = publisher.claimed_run("nightly").await;
    let limit = std::time::Duration::from_secs(10);
    let delivery = tests::tools::eventually("the delivery is finished", limit, async || {
        let list = publisher.admin.all("/v1/deliveries?status=succeeded").await;
        list.first()
            .map(|delivery| delivery["id"].as_str().unwrap().to_owned())
    })
    .await;
    let account = publisher.account("main").await;
    publisher.train("night", &[&account]).await;
    let (_, gateway) = publisher.train_token("night").await;
    Names(vec![
        ("{account}", account),
        ("{train}", gateway.token().to_owned()),
        ("{run}", run),
        ("{claim}", claim),
        ("{endpoint}", endpoint),
        ("{event}", event.id().to_owned()),
        ("{delivery}", delivery),
        ("{publisher}", publisher.id.clone()),
        ("{admin}", publisher.credential("admin")),
        ("{runner}", publisher.credential("runner")),
    ])
}

/// Sends one; what was wrong with the answer.
async fn tried(
    server: &Server,
    publisher: &Publisher,
    names: &Names,
    case: &Case,
) -> Option<String> {
    let user = match case.who {
        Who::Admin => publisher.admin.clone(),
        Who::Runner => publisher.runner.clone(),
        Who::Operator => server.operator(),
        Who::Train => server.user(&names.fill("{train}")),
    };
    let mut call = user.call(case.method, &names.fill(case.path));
    for (name, value) in &case.headers {
        call = call.header(name, &names.fill(value));
    }
    call = match &case.body {
        Body::None => call,
        Body::Json(value) => call.text("application/json", names.fill(&value.to_string())),
        Body::Text(content_type, text) => call.text(content_type, names.fill(text)),
        Body::Bytes(bytes) => call.text("application/json", bytes.clone()),
    };
    let answer = call.answer().await;
    let pointers = answer.pointers();
    let fits = answer.status == case.status
        && answer["code"] == case.code
        && (case.pointer == "-" || pointers.iter().any(|pointer| pointer == case.pointer));
    let wanted = (case.status, case.code, case.pointer);
    (!fits).then(|| format!("{}: wanted {wanted:?}: {answer}", case.what))
}

/// All that can be read, less the log of denials.
async fn everything(server: &Server, publisher: &Publisher) -> Vec<Value> {
    let mut all = Vec::new();
    for path in [
        "/v1/publishers/me/tokens",
        "/v1/publishers/me/audit",
        "/v1/pipelines",
        "/v1/runs",
        "/v1/events",
        "/v1/webhook-endpoints",
        "/v1/deliveries",
        "/v1/accounts",
        "/v1/trains",
        "/v1/trains/night/tokens",
    ] {
        for mut item in publisher.admin.all(path).await {
            if item["action"] != "token.denied" {
                item.as_object_mut().unwrap().remove("last_used_at");
                all.push(item);
            }
        }
    }
    all.push(
        publisher
            .admin
            .get("/v1/publishers/me")
            .expect(200)
            .await
            .json()
            .clone(),
    );
    all.extend(server.operator().all("/v1/publishers").await);
    all
}
