use std::time::Duration;

use domain::{
    Timestamp,
    id::{Id as _, PublisherId, RunId},
};
use sea_orm::{ActiveValue::Set, DbBackend, EntityTrait as _};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    fixture::{Fixture, START, context, engines, no_content},
    identity::tests::furnish_person,
    store::{
        ends::Table,
        entity::{
            credential_changes, credentials, delivery_attempts, idempotency_keys,
            pipeline_versions, pipelines, run_timeline, runs,
        },
        scope::Scope,
    },
    webhooks::events::emit,
};

const DAY: Duration = Duration::from_hours(24);

/// Inserts one row of everything that a publisher can have.
pub(crate) async fn furnish(fixture: &Fixture, publisher: PublisherId) {
    let (owner, now) = (publisher.uuid(), fixture.store.now());
    let endpoint = fixture.endpoint(publisher, true).await;
    let event = fixture.event(publisher).await;
    let delivery = fixture.delivery(publisher, event, endpoint, now).await;
    fixture
        .insert(delivery_attempts::ActiveModel {
            publisher_id: Set(owner),
            delivery_id: Set(delivery.uuid()),
            number: Set(1),
            at: Set(now.ms()),
            status_code: Set(Some(500)),
            error: Set(Some("status".into())),
            latency_ms: Set(1),
            response_excerpt: Set(None),
        })
        .await;
    for (table, columns, values) in [
        ("dispatch_leases", "fence, failures", "1, 0"),
        ("endpoint_sequences", "last", "1"),
    ] {
        let sql = format!(
            "INSERT INTO {table} (publisher_id, endpoint_id, {columns}) \
             SELECT publisher_id, id, {values} FROM webhook_endpoints WHERE publisher_id = {}",
            literal(fixture, owner)
        );
        fixture.execute(&sql).await;
    }
    fixture.insert(key_row(owner, "key", now.plus(DAY))).await;
    furnish_endpoint(fixture, owner, endpoint.uuid()).await;
    furnish_train(fixture, owner, endpoint.uuid()).await;
    furnish_person(fixture, publisher).await;
    let pipeline = pipeline(fixture, owner).await;
    let run = run_row(owner, pipeline, None);
    let id = run.id.clone().unwrap();
    fixture.insert(run).await;
    fixture
        .insert(run_timeline::ActiveModel {
            publisher_id: Set(owner),
            run_id: Set(id),
            seq: Set(1),
            at: Set(START.ms()),
            moment: Set("created".into()),
            attempt: Set(0),
            actor_kind: Set(None),
            actor_id: Set(None),
            data: Set(None),
        })
        .await;
}

/// Inserts the rows that belong to an endpoint.
async fn furnish_endpoint(fixture: &Fixture, owner: Uuid, endpoint: Uuid) {
    let (owner, endpoint) = (literal(fixture, owner), literal(fixture, endpoint));
    let own = format!("({owner}, {endpoint}");
    let bytes = match fixture.store.backend() {
        DbBackend::Sqlite => "x'00'",
        _ => "'\\x00'::bytea",
    };
    for sql in [
        format!("INSERT INTO storage_usage (publisher_id, bytes) VALUES ({owner}, 1)"),
        format!("INSERT INTO fan_out_sequences (publisher_id, last) VALUES ({owner}, 1)"),
        format!(
            "INSERT INTO fan_outs (publisher_id, seq, total, done, created_at, plan) VALUES ({owner}, 1, 2, 1, 1, '{{}}')"
        ),
        format!(
            "INSERT INTO event_types (publisher_id, event_type, id, revision, created_at, updated_at) VALUES ({owner}, 'a.b', {endpoint}, 1, 1, 1)"
        ),
        format!(
            "INSERT INTO endpoint_health (publisher_id, endpoint_id, consecutive_failures) VALUES {own}, 0)"
        ),
        format!(
            "INSERT INTO endpoint_stats (publisher_id, endpoint_id, bucket, succeeded, failed, latency_ms_sum, latency_ms_max) VALUES {own}, 0, 1, 0, 1, 1)"
        ),
        format!(
            "INSERT INTO endpoint_secrets (publisher_id, endpoint_id, id, kind, sealed, last_four, created_at) VALUES {own}, {endpoint}, 'hmac', {bytes}, 'abcd', 1)"
        ),
        format!(
            "INSERT INTO replays (publisher_id, endpoint_id, id, status, filter, since, until, only_failed, matched, queued, looked_at, created_at) VALUES {own}, {endpoint}, 'running', '', 1, 2, FALSE, 0, 0, 1, 1)"
        ),
    ] {
        fixture.execute(&sql).await;
    }
}

/// Inserts a train, its account, and the rows that belong to them, all with the same identifier.
async fn furnish_train(fixture: &Fixture, owner: Uuid, id: Uuid) {
    let own = format!("({}, {}", literal(fixture, owner), literal(fixture, id));
    let (id, bytes) = match fixture.store.backend() {
        DbBackend::Sqlite => (literal(fixture, id), format!("x'{}'", id.simple())),
        _ => (literal(fixture, id), format!("'\\x{}'::bytea", id.simple())),
    };
    for sql in [
        format!(
            "accounts (publisher_id, id, name, provider, base_url, header_name, credential_type, sealed, credential_version, last_four, enabled, health, revision, created_at, updated_at) VALUES {own}, 'a', 'local', 'https://a.example', 'x', 'api_key', {bytes}, 1, 'abcd', TRUE, 'ok', 1, 1, 1)"
        ),
        format!(
            "account_cooldowns (publisher_id, account_id, model, until, reason, reported_at) VALUES {own}, '', 1, 'failed', 1)"
        ),
        format!(
            "account_usage (publisher_id, account_id, bucket, requests, tokens) VALUES {own}, 0, 1, 1)"
        ),
        format!(
            "trains (publisher_id, id, slug, enabled, sticky, revision, created_at, updated_at) VALUES {own}, 'night', TRUE, FALSE, 1, 1, 1)"
        ),
        format!(
            "train_accounts (publisher_id, train_id, account_id, priority) VALUES {own}, {id}, 0)"
        ),
        format!(
            "train_tokens (publisher_id, id, train_id, last_four, source, created_at) VALUES {own}, {id}, 'abcd', 'api', 1)"
        ),
        format!("train_token_hashes (publisher_id, token_id, hash) VALUES {own}, {bytes})"),
        format!(
            "oauth_logins (publisher_id, state_hash, sealed, account, created_at, expires_at) VALUES ({}, {bytes}, {bytes}, '', 1, 1)",
            literal(fixture, owner)
        ),
        format!(
            "train_notices (publisher_id, id, train_id, event_type, message, attempts, next_attempt_at, created_at) VALUES {own}, {id}, 'train.exhausted', '', 0, 1, 1)"
        ),
    ] {
        fixture.execute(&format!("INSERT INTO {sql}")).await;
    }
}

fn key_row(owner: Uuid, key: &str, expires_at: Timestamp) -> idempotency_keys::ActiveModel {
    idempotency_keys::ActiveModel {
        owner_id: Set(owner),
        operation: Set("createRun".into()),
        key: Set(key.into()),
        request_hash: Set(vec![0; 32]),
        answer: Set(None),
        answer_until: Set(None),
        created_at: Set(START.ms()),
        expires_at: Set(expires_at.ms()),
    }
}

async fn pipeline(fixture: &Fixture, owner: Uuid) -> Uuid {
    let id = Uuid::from_bytes(domain::random::bytes());
    fixture
        .insert(pipelines::ActiveModel {
            publisher_id: Set(owner),
            id: Set(id),
            slug: Set("nightly".into()),
            live_slug: Set(Some("nightly".into())),
            version: Set(1),
            revision: Set(1),
            created_at: Set(START.ms()),
            updated_at: Set(START.ms()),
            paused_at: Set(None),
        })
        .await;
    fixture
        .insert(pipeline_versions::ActiveModel {
            publisher_id: Set(owner),
            pipeline_id: Set(id),
            version: Set(1),
            definition: Set("{}".into()),
            created_at: Set(START.ms()),
        })
        .await;
    id
}

/// A run that is queued, or that ended at the first time and is to be removed at the second.
fn run_row(
    owner: Uuid,
    pipeline: Uuid,
    ended: Option<(Timestamp, Timestamp)>,
) -> runs::ActiveModel {
    runs::ActiveModel {
        publisher_id: Set(owner),
        id: Set(RunId::generate(START).uuid()),
        pipeline_id: Set(pipeline),
        pipeline_version: Set(1),
        pipeline_slug: Set("nightly".into()),
        status: Set(if ended.is_some() {
            "succeeded"
        } else {
            "queued"
        }
        .into()),
        input: Set("{}".into()),
        output: Set(None),
        error: Set(None),
        external_id: Set(None),
        priority: Set(0),
        not_before: Set(START.ms()),
        attempt: Set(0),
        max_attempts: Set(1),
        lease_seconds: Set(60),
        retention_days: Set(90),
        claim_hash: Set(None),
        claimed_by: Set(None),
        lease_expires_at: Set(None),
        created_by_id: Set("tok".into()),
        created_by_kind: Set("runner".into()),
        revision: Set(1),
        created_at: Set(START.ms()),
        started_at: Set(None),
        finished_at: Set(ended.map(|(at, _)| at.ms())),
        sweep_at: Set(ended.map(|(_, at)| at.ms())),
        progress: Set(None),
        cancel_requested: Set(false),
        failures: Set(0),
        expires_at: Set(None),
        ready: Set(true),
    }
}

#[tokio::test]
async fn dead_credentials_go_and_live_ones_stay() {
    for fixture in engines().await {
        let owner = fixture.publisher("acme").await.publisher.id.uuid();
        let rows = credentials::Entity::find()
            .all(fixture.store.read())
            .await
            .unwrap();
        let of = |kind: &str| rows.iter().find(|row| row.kind == kind).unwrap().id;
        let change = |kind: &str, revoked_at: Option<Timestamp>, expires_at: Option<Timestamp>| {
            credentials::ActiveModel {
                publisher_id: Set(owner),
                id: Set(of(kind)),
                revoked_at: Set(revoked_at.map(Timestamp::ms)),
                expires_at: Set(expires_at.map(Timestamp::ms)),
                ..Default::default()
            }
        };
        let (old, fresh) = (START.minus(31 * DAY), START.minus(29 * DAY));
        for row in [
            change("admin", Some(old), None),
            change("runner", None, Some(fresh)),
            change("webhook_signing", None, Some(old)),
            change("subcommand_bearer", None, Some(START.plus(DAY))),
        ] {
            let row = &row;
            fixture
                .store
                .write(|tx| async move {
                    credentials::Entity::update(row.clone())
                        .exec(tx.db())
                        .await?;
                    Ok(())
                })
                .await
                .unwrap();
        }
        let (system, cutoff) = (fixture.store.system().operations(), START.minus(30 * DAY));
        assert_eq!(
            system
                .sweep_table("credentials", cutoff, 500)
                .await
                .unwrap(),
            2
        );
        assert_eq!(fixture.count("credentials").await, 2);
        assert_eq!(fixture.count("credentials WHERE kind = 'runner'").await, 1);
        assert_eq!(
            fixture.count("token_hashes").await,
            1,
            "the admin token's hash went along"
        );
        assert_eq!(
            system
                .sweep_table("credentials", cutoff, 500)
                .await
                .unwrap(),
            0
        );
    }
}

#[tokio::test]
async fn the_log_of_changes_keeps_its_end() {
    for fixture in engines().await {
        let system = fixture.store.system().operations();
        fixture.execute("DELETE FROM credential_changes").await;
        for epoch in 101..=105 {
            fixture
                .insert(credential_changes::ActiveModel {
                    epoch: Set(epoch),
                    publisher_id: Set(Uuid::from_u128(7)),
                    at: Set(START.minus(DAY).ms()),
                })
                .await;
        }
        assert_eq!(
            system
                .sweep_table("credential_changes", Timestamp::from_ms(0), 3)
                .await
                .unwrap(),
            3
        );
        assert_eq!(
            system
                .sweep_table("credential_changes", Timestamp::from_ms(0), 3)
                .await
                .unwrap(),
            1
        );
        assert_eq!(
            system
                .sweep_table("credential_changes", Timestamp::from_ms(0), 3)
                .await
                .unwrap(),
            0
        );
        assert_eq!(
            fixture.count("credential_changes WHERE epoch = 105").await,
            1
        );
    }
}

#[tokio::test]
async fn idempotency_keys_go_at_their_hour() {
    for fixture in engines().await {
        let owner = Uuid::from_u128(7);
        for (key, expires_at) in [("old", START), ("fresh", START.plus(DAY))] {
            fixture.insert(key_row(owner, key, expires_at)).await;
        }
        assert_eq!(
            fixture
                .store
                .system()
                .operations()
                .sweep_table("idempotency_keys", Timestamp::from_ms(0), 500)
                .await
                .unwrap(),
            1
        );
        assert_eq!(
            fixture.count("idempotency_keys WHERE key = 'fresh'").await,
            1
        );
    }
}

#[tokio::test]
async fn answers_that_hold_a_credential_are_wiped_at_their_minute() {
    for fixture in engines().await {
        let owner = Uuid::from_u128(7);
        let now = START.ms();
        for (key, until) in [
            ("old-1", Some(now)),
            ("old-2", Some(now - 1)),
            ("old-3", Some(now - 1000)),
            ("fresh", Some(now + 1)),
            ("no credential", None),
        ] {
            let row = idempotency_keys::ActiveModel {
                answer: Set(Some(vec![1; 64])),
                answer_until: Set(until),
                ..key_row(owner, key, START.plus(DAY))
            };
            fixture.insert(row).await;
        }
        let system = fixture.store.system().operations();
        for wiped in [2, 1, 0] {
            assert_eq!(system.wipe_secret_answers(2).await.unwrap(), wiped);
        }
        let count = async |condition: &str| {
            let from = format!("idempotency_keys WHERE {condition}");
            fixture.count(&from).await
        };
        assert_eq!(count("answer IS NULL AND key LIKE 'old-%'").await, 3);
        assert_eq!(count("answer IS NOT NULL").await, 2);
        // The times stay: they tell a repeated request why there is no response.
        assert_eq!(count("answer_until IS NOT NULL").await, 4);
    }
}

/// Not possible on SQLite, which has one writer.
#[tokio::test]
async fn an_event_written_while_its_endpoint_goes_leaves_no_delivery_waiting() {
    for fixture in engines().await {
        if fixture.store.backend() != DbBackend::Postgres {
            continue;
        }
        let publisher = fixture.publisher("acme").await.publisher.id;
        let endpoint = fixture.endpoint(publisher, false).await;
        let scoped = fixture.store.scoped(&Scope::of_row(publisher.uuid(), None));
        let (written, gone) = (&Notify::new(), &Notify::new());
        let producer = fixture.store.write(|tx| async move {
            let data = serde_json::json!({});
            emit(&tx, publisher.uuid(), "run.created", &data, None).await?;
            written.notify_one();
            gone.notified().await;
            Ok(())
        });
        let remover = async {
            written.notified().await;
            let context = context();
            let webhooks = scoped.webhooks();
            let done = webhooks.delete_endpoint(&context, endpoint, None, |()| no_content());
            done.await.unwrap();
            gone.notify_one();
        };
        let (written_down, ()) = tokio::join!(producer, remover);
        written_down.unwrap();
        let waiting = "deliveries WHERE status = 'pending'";
        assert_eq!(fixture.count(waiting).await, 1, "neither saw the other");
        let system = fixture.store.system().operations();
        assert_eq!(system.cancel_orphans(500).await.unwrap(), 1);
        assert_eq!(fixture.count(waiting).await, 0);
    }
}

#[tokio::test]
async fn deliveries_to_deleted_endpoints_are_called_off_and_no_others() {
    for fixture in engines().await {
        let publisher = fixture.publisher("acme").await.publisher.id;
        let event = fixture.event(publisher).await;
        let now = fixture.store.now();
        let live = fixture.endpoint(publisher, false).await;
        let off = fixture.endpoint(publisher, false).await;
        let gone = fixture.endpoint(publisher, false).await;
        for endpoint in [live, off, gone].repeat(3) {
            fixture.delivery(publisher, event, endpoint, now).await;
        }
        let disabled = literal(&fixture, off.uuid());
        let deleted = literal(&fixture, gone.uuid());
        for change in [
            format!("UPDATE webhook_endpoints SET enabled = false WHERE id = {disabled}"),
            format!(
                "UPDATE webhook_endpoints SET enabled = false, deleted_at = {} WHERE id = {deleted}",
                now.ms()
            ),
        ] {
            fixture.execute(&change).await;
        }
        // A delivery that has ended keeps its state.
        let one = fixture.delivery(publisher, event, gone, now).await;
        let ended = literal(&fixture, one.uuid());
        let ended = format!(
            "UPDATE deliveries SET status = 'failed', next_attempt_at = NULL, finished_at = 1 \
             WHERE id = {ended}"
        );
        fixture.execute(&ended).await;

        let system = fixture.store.system().operations();
        for called_off in [2, 1, 0] {
            assert_eq!(system.cancel_orphans(2).await.unwrap(), called_off);
        }
        let cancelled = format!(
            "deliveries WHERE status = 'cancelled' AND finished_at = {} \
             AND endpoint_id = {deleted}",
            now.ms()
        );
        assert_eq!(fixture.count(&cancelled).await, 3);
        assert_eq!(
            fixture.count("deliveries WHERE status = 'pending'").await,
            6
        );
        assert_eq!(fixture.count("deliveries WHERE status = 'failed'").await, 1);
    }
}

#[tokio::test]
async fn deliveries_go_before_their_events_and_pending_ones_stay() {
    for fixture in engines().await {
        let publisher = fixture.publisher("acme").await.publisher.id;
        fixture.execute("DELETE FROM events").await;
        for _ in 0..3 {
            furnish_webhook(&fixture, publisher).await;
        }
        fixture.clock.advance(40 * DAY);
        let (system, cutoff) = (fixture.store.system().operations(), START.plus(10 * DAY));
        assert_eq!(
            system.sweep_table("deliveries", cutoff, 500).await.unwrap(),
            0,
            "all are pending"
        );
        assert_eq!(
            system.sweep_table("events", cutoff, 500).await.unwrap(),
            0,
            "all have deliveries"
        );

        let ended = START.plus(DAY).ms();
        fixture
            .execute(&format!(
                "UPDATE deliveries SET status = 'failed', next_attempt_at = NULL, finished_at = {ended}"
            ))
            .await;
        assert_eq!(
            system.sweep_table("deliveries", START, 500).await.unwrap(),
            0,
            "all are fresh"
        );
        assert_eq!(
            system.sweep_table("deliveries", cutoff, 2).await.unwrap(),
            2
        );
        assert_eq!(
            fixture.count("delivery_attempts").await,
            1,
            "attempts go along"
        );
        furnish_webhook(&fixture, publisher).await;
        assert_eq!(system.sweep_table("events", cutoff, 500).await.unwrap(), 2);
        assert_eq!(
            system.sweep_table("deliveries", cutoff, 500).await.unwrap(),
            1
        );
        assert_eq!(system.sweep_table("events", cutoff, 500).await.unwrap(), 1);
        assert_eq!(fixture.count("events").await, 1, "the new one");
        assert_eq!(fixture.count("deliveries").await, 1);
    }
}

async fn furnish_webhook(fixture: &Fixture, publisher: PublisherId) {
    let endpoint = fixture.endpoint(publisher, false).await;
    let event = fixture.event(publisher).await;
    let delivery = fixture
        .delivery(publisher, event, endpoint, fixture.store.now())
        .await;
    fixture
        .insert(delivery_attempts::ActiveModel {
            publisher_id: Set(publisher.uuid()),
            delivery_id: Set(delivery.uuid()),
            number: Set(1),
            at: Set(START.ms()),
            status_code: Set(None),
            error: Set(Some("dns".into())),
            latency_ms: Set(1),
            response_excerpt: Set(None),
        })
        .await;
}

#[tokio::test]
async fn runs_go_when_their_pipeline_or_the_operator_says() {
    for fixture in engines().await {
        let owner = fixture.publisher("acme").await.publisher.id.uuid();
        let pipeline = pipeline(&fixture, owner).await;
        let ended = START.minus(10 * DAY);
        for row in [
            None,
            Some((ended, START)),
            Some((ended, START.plus(DAY))),
            Some((START.minus(DAY), START.plus(DAY))),
        ] {
            fixture.insert(run_row(owner, pipeline, row)).await;
        }
        let system = fixture.store.system().operations();
        assert_eq!(
            system
                .sweep_table("runs", Timestamp::from_ms(0), 500)
                .await
                .unwrap(),
            1
        );
        assert_eq!(
            system
                .sweep_table("runs", Timestamp::from_ms(0), 500)
                .await
                .unwrap(),
            0
        );
        assert_eq!(
            system
                .shorten_runs(START.minus(90 * DAY), 500)
                .await
                .unwrap(),
            0
        );
        assert_eq!(
            system
                .shorten_runs(START.minus(5 * DAY), 500)
                .await
                .unwrap(),
            1
        );
        assert_eq!(
            system
                .sweep_table("runs", Timestamp::from_ms(0), 500)
                .await
                .unwrap(),
            1
        );
        assert_eq!(fixture.count("runs WHERE status = 'queued'").await, 1);
        assert_eq!(fixture.count("runs").await, 2);
    }
}

#[tokio::test]
async fn a_publisher_goes_for_good_and_takes_nobody_along() {
    for fixture in engines().await {
        let gone = fixture.publisher("gone").await.publisher.id;
        let kept = fixture.publisher("kept").await.publisher.id;
        furnish(&fixture, gone).await;
        furnish(&fixture, kept).await;
        let system = fixture.store.system().operations();
        system
            .publishers()
            .delete_publisher(&context(), gone, "gone", None, |()| no_content())
            .await
            .unwrap();
        let cutoff = |fixture: &Fixture| fixture.store.now().minus(7 * DAY);
        fixture.clock.advance(6 * DAY);
        assert_eq!(
            system
                .sweep_publishers(cutoff(&fixture), 500)
                .await
                .unwrap(),
            0
        );

        fixture.clock.advance(DAY);
        let of_gone = format!(
            "owner_keys WHERE length(data_key) > 0 AND owner_id = {}",
            literal(&fixture, gone.uuid())
        );
        assert_eq!(fixture.count(&of_gone).await, 1);
        assert_eq!(
            system.sweep_publishers(cutoff(&fixture), 3).await.unwrap(),
            3
        );
        assert_eq!(fixture.count(&of_gone).await, 0, "keys go first");
        assert!(
            fixture
                .store
                .inner
                .keys
                .find(fixture.store.read(), gone.uuid())
                .await
                .unwrap()
                .is_none()
        );
        let log = system.verify_audit(Some(gone)).await.unwrap();
        assert_eq!(
            (log.fault, log.checked),
            (None, log.head.seq.unsigned_abs())
        );
        assert!(log.checked > 1, "a log is verified until it is removed");
        assert_eq!(fixture.count("publishers").await, 2, "the row goes last");
        while system.sweep_publishers(cutoff(&fixture), 3).await.unwrap() == 3 {}

        for (Table { name: table, .. }, owner) in super::tables_of_a_publisher() {
            let of = |id: PublisherId| {
                format!("{table} WHERE {owner} = {}", literal(&fixture, id.uuid()))
            };
            assert_eq!(fixture.count(&of(gone)).await, 0, "{table}");
            assert!(fixture.count(&of(kept)).await > 0, "{table}");
        }
        assert_eq!(fixture.count("token_hashes").await, 2);
        assert_eq!(fixture.count("train_token_hashes").await, 1);
        assert!(system.publishers().publisher(kept).await.is_ok());
    }
}

/// An identifier as each engine writes it in SQL.
pub(crate) fn literal(fixture: &Fixture, id: Uuid) -> String {
    match fixture.store.backend() {
        DbBackend::Sqlite => format!("x'{}'", id.simple()),
        _ => format!("'{id}'"),
    }
}
