//! A publisher with one of everything.

use std::time::Duration;

use domain::{
    Timestamp,
    id::{Id as _, UserId},
    permission::TokenKind,
};
use serde_json::{Value, json};
use tests::{Consumer, Publisher, Server, TokenEndpoint, User, tools};

/// Names that only one publisher uses, and identifiers of everything that it has.
pub struct Things {
    pub publisher: Publisher,
    /// The slug of a pipeline.
    pub pipeline: String,
    /// A run that waits.
    pub queued: String,
    /// Its external identifier.
    pub external_id: String,
    /// A run that its runner holds.
    pub running: String,
    /// By this.
    pub claim: String,
    /// A run that is over.
    pub finished: String,
    /// A pipeline without unfinished runs.
    pub idle_pipeline: String,
    pub endpoint: String,
    pub event: String,
    /// A replay to the endpoint, ended.
    pub replay: String,
    /// A secret of the endpoint's own.
    pub endpoint_secret: String,
    /// The name of public keys of another endpoint of its.
    pub key_set: String,
    /// A type of events that it has described.
    pub event_type: String,
    /// The external identifier of an event that it published.
    pub published: String,
    /// An account that the train lends.
    pub account: String,
    /// One that no train lends.
    pub spare_account: String,
    /// An account whose token can be refreshed, and a login that was begun, by their endpoint.
    pub oauth_account: String,
    pub login_state: String,
    pub tokens: TokenEndpoint,
    /// The slug of a train, and the name of its account.
    pub train: String,
    /// The credential that it lends, as it goes out.
    pub lent: String,
    /// Who holds a token of the train.
    pub gateway: User,
    /// Another token of the train.
    pub train_token_id: String,
    /// One that is no longer good.
    pub revoked_train_token: String,
    /// One that soon won't be.
    pub expired_train_token: String,
    /// Finished.
    pub delivery: String,
    /// A runner token beside the first.
    pub token_id: String,
    /// A signing secret beside the first.
    pub secret_id: String,
    /// A member, and somebody who is invited.
    pub member: String,
    pub invitation: String,
    /// An admin token that is no longer good.
    pub revoked: String,
    /// An admin token that soon won't be.
    pub expired: String,
}

impl Things {
    /// Whoever has a token of this kind.
    pub fn holder(&self, server: &Server, kind: TokenKind) -> User {
        match kind {
            TokenKind::Admin => self.publisher.admin.clone(),
            TokenKind::Runner => self.publisher.runner.clone(),
            TokenKind::Train => self.gateway.clone(),
            TokenKind::Bootstrap => server.operator(),
        }
    }

    #[expect(
        clippy::too_many_lines,
        reason = "one of everything, one after the other"
    )]
    pub async fn make(server: &Server, consumer: &Consumer) -> Self {
        let word = tools::word();
        let publisher = server.publisher(&format!("tenant-{word}")).await;
        let admin = &publisher.admin;
        let (pipeline, idle_pipeline) = (format!("busy-{word}"), format!("idle-{word}"));
        let busy = json!({
            "display_name": "Busy",
            "subcommands": {"archive": {"url": consumer.url}},
        });
        let path = format!("/v1/pipelines/{pipeline}");
        admin.put(&path).json(&busy).expect(201).await;
        publisher.pipeline(&idle_pipeline).await;
        let finished = publisher.finished_run(&pipeline).await;
        let (running, claim) = publisher.claimed_run(&pipeline).await;
        let external_id = format!("external-{word}");
        let path = format!("/v1/pipelines/{pipeline}/runs");
        let body = json!({"input": {"word": word}, "external_id": external_id});
        let queued = publisher.runner.post(&path).json(&body);
        let queued = queued.expect(201).await.text("/id");

        let event_type = format!("tenant.{word}");
        let own_event = format!("event-{word}");
        publish(&publisher, &event_type, &own_event).await;

        let endpoint = publisher.endpoint(consumer, &["stationmaster.test"]).await;
        let test = format!("/v1/webhook-endpoints/{endpoint}/test");
        let answer = admin.post(&test).answer().await;
        assert!((200..300).contains(&answer.status), "{answer}");
        let delivery = finished_delivery(&publisher).await;

        let replay = ended_replay(admin, &endpoint).await;
        let path = format!("/v1/webhook-endpoints/{endpoint}/secrets");
        let endpoint_secret = admin.post(&path).expect(201).await.text("/id");
        let key_set = key_set(admin, consumer).await;

        let train = format!("train-{word}");
        let account = publisher.account(&train).await;
        let tokens = TokenEndpoint::start(server).await;
        let body = tokens.account(&format!("oauth {word}"), Duration::from_hours(1));
        let made = admin.post("/v1/accounts").json(&body);
        let oauth_account = made.expect(201).await.text("/id");
        let body = tokens.login_body(&format!("login {word}"));
        let begun = admin.post("/v1/accounts/oauth/start").json(&body);
        let login_state = begun.expect(200).await.text("/state");
        let spare_account = publisher.account(&format!("spare {word}")).await;
        publisher.train(&train, &[&account]).await;
        let (_, gateway) = publisher.train_token(&train).await;
        let resolve = gateway.post("/v1/resolve").repeats_a_secret();
        let lent = resolve.expect(200).await.text("/headers/authorization");
        let (train_token_id, _) = publisher.train_token(&train).await;
        let (id, revoked_train_token) = publisher.train_token(&train).await;
        let path_of_tokens = format!("/v1/trains/{train}/tokens");
        let path = format!("{path_of_tokens}/{id}");
        admin.delete(&path).expect(204).await;

        let member = member(server, &publisher).await;
        let body = json!({"email": format!("{word}@example.org"), "role": "viewer"});
        let invitation = admin.post("/v1/invitations").json(&body);
        let invitation = invitation.expect(201).await.text("/id");

        let mint = async |kind: &str, body: Value| {
            let path = format!("/v1/publishers/me/tokens/{kind}");
            admin.post(&path).json(&body).expect(201).await
        };
        let token_id = mint("runner", json!({"name": "spare"})).await.text("/id");
        let secret_id = mint("webhook_signing", json!({"name": "spare"}))
            .await
            .text("/id");
        let revoked = mint("admin", json!({"name": "revoked"})).await;
        let path = format!("/v1/publishers/me/tokens/admin/{}", revoked.text("/id"));
        admin.delete(&path).expect(204).await;
        let brief = json!({"name": "brief", "expires_at": tools::in_seconds(2)});
        let expired = mint("admin", brief.clone()).await.text("/token");
        let expired_train_token = admin.post(&path_of_tokens).json(&brief);
        let expired_train_token = expired_train_token.expect(201).await.text("/token");
        Self {
            pipeline,
            queued,
            external_id,
            running,
            claim,
            finished,
            idle_pipeline,
            endpoint,
            replay,
            endpoint_secret,
            key_set,
            account,
            spare_account,
            oauth_account,
            login_state,
            tokens,
            train,
            lent,
            gateway,
            train_token_id,
            revoked_train_token: revoked_train_token.token().to_owned(),
            expired_train_token,
            event_type,
            published: own_event,
            event: delivery["event_id"].as_str().unwrap().to_owned(),
            delivery: delivery["id"].as_str().unwrap().to_owned(),
            token_id,
            secret_id,
            member,
            invitation,
            revoked: revoked.text("/token"),
            expired,
            publisher,
        }
    }

    /// Lets the operator suspend the publisher.
    pub async fn suspend(&self, server: &Server) {
        let path = format!("/v1/publishers/{}/suspend", self.publisher.id);
        server.operator().post(&path).expect(200).await;
    }

    /// Everything by which this publisher could be recognised.
    pub fn identifiers(&self) -> Vec<String> {
        let mut all = vec![self.publisher.id.clone(), self.publisher.slug.clone()];
        all.extend(
            [
                &self.pipeline,
                &self.idle_pipeline,
                &self.queued,
                &self.external_id,
                &self.running,
                &self.finished,
                &self.endpoint,
                &self.event,
                &self.event_type,
                &self.published,
                &self.replay,
                &self.endpoint_secret,
                &self.key_set,
                &self.account,
                &self.spare_account,
                &self.oauth_account,
                &self.train,
                &self.lent,
                &self.train_token_id,
                &self.delivery,
                &self.token_id,
                &self.secret_id,
                &self.member,
                &self.invitation,
            ]
            .into_iter()
            .cloned(),
        );
        all
    }
}

/// Makes somebody a member who never signs in: written into the database, since mails would take
/// much longer.
async fn member(server: &Server, publisher: &Publisher) -> String {
    let id = UserId::generate(Timestamp::from_ms(tools::now_s() * 1000));
    let (site, hex) = (server.site(), id.uuid().simple().to_string());
    let literal = |hex: &str| match site.database {
        Some(_) => format!("'{hex}'"),
        None => format!("X'{hex}'"),
    };
    let id_text = literal(&hex);
    for statement in [
        format!(
            "INSERT INTO users (id, staff, revision, created_at, updated_at) VALUES ({id_text}, false, 1, 1, 1)"
        ),
        format!(
            "INSERT INTO user_addresses (address, user_id, is_primary, verified_at, created_at) VALUES ('{hex}@example.org', {id_text}, true, 1, 1)"
        ),
        format!(
            "INSERT INTO memberships (publisher_id, user_id, role, revision, created_at, updated_at) SELECT id, {id_text}, 'viewer', 1, 1, 1 FROM publishers WHERE slug = '{}'",
            publisher.slug
        ),
    ] {
        assert_eq!(site.execute(&statement).await, 1, "{statement}");
    }
    id.to_string()
}

/// Describes a type, and publishes an event of it.
async fn publish(publisher: &Publisher, event_type: &str, external_id: &str) {
    let path = format!("/v1/event-types/{event_type}");
    let body = json!({"description": format!("Of {external_id}")});
    publisher.admin.put(&path).json(&body).expect(201).await;
    let data = json!({"word": external_id});
    let body = json!({"type": event_type, "data": data, "external_id": external_id});
    let call = publisher.runner.post("/v1/events").json(&body);
    call.expect(202).await;
}

async fn ended_replay(admin: &User, endpoint: &str) -> String {
    let path = format!("/v1/webhook-endpoints/{endpoint}/replays");
    let body = json!({"since": "2026-01-01T00:00:00Z", "event_types": ["none.such.*"]});
    let replay = admin.post(&path).json(&body).expect(202).await.text("/id");
    let cancel = format!("{path}/{replay}/cancel");
    admin.post(&cancel).expect(200).await;
    replay
}

/// The name of the public keys of an endpoint that signs by a pair.
async fn key_set(admin: &User, consumer: &Consumer) -> String {
    let body = json!({"url": consumer.url, "event_types": ["none.such"], "signing": "ed25519"});
    let signing = admin.post("/v1/webhook-endpoints").json(&body);
    let keys = signing.expect(201).await.text("/public_keys");
    keys.replace("/v1/webhook-keys/", "")
}

async fn finished_delivery(publisher: &Publisher) -> Value {
    let limit = Duration::from_secs(15);
    tools::eventually("the test event is delivered", limit, async || {
        let list = publisher.admin.all("/v1/deliveries").await;
        list.into_iter()
            .find(|delivery| delivery["status"] == "succeeded")
    })
    .await
}

/// All that the owner can read, less what reading itself changes.
pub async fn snapshot(server: &Server, things: &Things) -> Vec<(String, Value)> {
    let publisher = &things.publisher;
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
        "/v1/members",
        "/v1/invitations",
        &format!("/v1/trains/{}/tokens", things.train),
    ] {
        let items: Vec<Value> = publisher
            .admin
            .all(path)
            .await
            .into_iter()
            .filter(|item| item["action"] != "token.denied")
            .map(without_use)
            .collect();
        all.push((path.to_owned(), json!(items)));
    }
    let types = publisher.admin.get("/v1/event-types").expect(200).await;
    all.push(("/v1/event-types".to_owned(), types["items"].clone()));
    for run in [&things.running, &things.queued] {
        let path = format!("/v1/runs/{run}/timeline");
        let entries = publisher.admin.all(&path).await;
        all.push((path, json!(entries)));
    }
    let delivery = format!("/v1/deliveries/{}", things.delivery);
    let of_operator = format!("/v1/publishers/{}", publisher.id);
    let usage = "/v1/publishers/me/usage".to_owned();
    let endpoint = format!("/v1/webhook-endpoints/{}", things.endpoint);
    let secrets = format!("{endpoint}/secrets");
    let replay = format!("{endpoint}/replays/{}", things.replay);
    for path in [delivery, usage, secrets, replay] {
        let answer = publisher.admin.get(&path).expect(200).await;
        all.push((path, answer.json().clone()));
    }
    let answer = server.operator().get(&of_operator).expect(200).await;
    all.push((of_operator, answer.json().clone()));
    // What gateways reported shows in what is lent.
    let resolve = things.gateway.post("/v1/resolve").repeats_a_secret();
    let lent = resolve.expect(200).await["account_id"].clone();
    all.push(("/v1/resolve".to_owned(), lent));
    all
}

/// When a token was last used changes by the looking.
fn without_use(mut item: Value) -> Value {
    if let Some(members) = item.as_object_mut() {
        members.remove("last_used_at");
    }
    item
}
