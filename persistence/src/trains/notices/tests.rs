use std::{collections::BTreeSet, sync::Arc};

use sea_orm::ActiveValue::Set;
use secrecy::ExposeSecret as _;

use super::*;
use crate::{
    fixture::{Fixture, START, engines},
    store::{
        entity::{accounts, train_accounts, trains},
        scope::Scope,
    },
};

const LEASE: Duration = Duration::from_secs(30);
const BOTH: &str = "account.refresh_failed train.exhausted";

async fn train(
    fixture: &Fixture,
    publisher: PublisherId,
    slug: &str,
    events: Option<&str>,
) -> TrainId {
    let id = TrainId::generate(fixture.store.now());
    let keys = &fixture.store.inner.keys;
    let keys = keys.of(fixture.store.read(), publisher.uuid());
    let keys = keys.await.unwrap();
    let url = SecretString::from(format!("https://hooks.example/{slug}"));
    let sealed = train::seal_webhook(&keys.data, publisher, id, &url);
    fixture
        .insert(trains::ActiveModel {
            publisher_id: Set(publisher.uuid()),
            id: Set(id.uuid()),
            slug: Set(slug.to_owned()),
            description: Set(None),
            enabled: Set(true),
            sticky: Set(false),
            slack_webhook: Set(events.map(|_| sealed)),
            slack_channel: Set(events.map(|_| "#ops".to_owned())),
            slack_events: Set(events.map(str::to_owned)),
            exhausted_at: Set(None),
            revision: Set(1),
            created_at: Set(START.ms()),
            updated_at: Set(START.ms()),
        })
        .await;
    id
}

/// An account in these trains.
async fn account(fixture: &Fixture, publisher: PublisherId, of: &[TrainId]) -> AccountId {
    let id = AccountId::generate(fixture.store.now());
    fixture
        .insert(accounts::ActiveModel {
            publisher_id: Set(publisher.uuid()),
            id: Set(id.uuid()),
            name: Set(id.to_string()),
            provider: Set("openai".into()),
            base_url: Set("https://api.example".into()),
            header_name: Set("authorization".into()),
            header_scheme: Set(None),
            credential_type: Set("api_key".into()),
            sealed: Set(vec![0]),
            credential_version: Set(1),
            last_four: Set("abcd".into()),
            enabled: Set(true),
            health: Set("ok".into()),
            health_reason: Set(None),
            failed_at: Set(None),
            ceilings: Set(None),
            expires_at: Set(None),
            token_url: Set(None),
            client_id: Set(None),
            scopes: Set(None),
            refreshed_at: Set(None),
            refresh_due_at: Set(None),
            refresh_failures: Set(0),
            refresh_lease: Set(None),
            refresh_lease_until: Set(None),
            revision: Set(1),
            created_at: Set(START.ms()),
            updated_at: Set(START.ms()),
        })
        .await;
    for train in of {
        fixture
            .insert(train_accounts::ActiveModel {
                publisher_id: Set(publisher.uuid()),
                train_id: Set(train.uuid()),
                account_id: Set(id.uuid()),
                priority: Set(0),
            })
            .await;
    }
    id
}

async fn tell(fixture: &Fixture, publisher: PublisherId, trigger: NoticeTrigger<'_>) {
    let trigger = &trigger;
    fixture
        .store
        .write(|tx| async move { notify(&tx, publisher, trigger).await })
        .await
        .unwrap();
}

async fn exhaust(fixture: &Fixture, publisher: PublisherId, train: TrainId) {
    tell(fixture, publisher, NoticeTrigger::Exhausted(train, None)).await;
}

async fn look(fixture: &Fixture, busy: &[PublisherId], bounds: (u32, u32)) -> Notices {
    let system = fixture.store.system();
    system
        .trains()
        .claim_notices(busy, bounds, LEASE)
        .await
        .unwrap()
}

async fn claim_all(fixture: &Fixture) -> Vec<DueNotice> {
    look(fixture, &[], (100, 100)).await.claimed
}

async fn record(
    fixture: &Fixture,
    due: &DueNotice,
    error: Option<&'static str>,
    retry_at: Option<Timestamp>,
) -> bool {
    let outcome = NoticeOutcome {
        publisher: due.publisher,
        id: due.id,
        attempt: due.attempt,
        error,
        retry_at,
    };
    let system = fixture.store.system();
    system.trains().record_notice(outcome).await.unwrap()
}

#[tokio::test]
async fn those_are_told_that_asked() {
    for fixture in engines().await {
        let acme = fixture.publisher("acme").await.publisher.id;
        let other = fixture.publisher("other").await.publisher.id;
        let both = train(&fixture, acme, "both", Some(BOTH)).await;
        let one = train(&fixture, acme, "one", Some("train.exhausted")).await;
        let silent = train(&fixture, acme, "silent", None).await;
        train(&fixture, acme, "apart", Some(BOTH)).await;
        train(&fixture, other, "both", Some(BOTH)).await;
        let account = account(&fixture, acme, &[both, one, silent]).await;

        let trigger = NoticeTrigger::RefreshFailed {
            lent_until: None,
            account,
            name: "main <a>",
            reason: "invalid_grant",
        };
        tell(&fixture, acme, trigger).await;
        let told = claim_all(&fixture).await;
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].publisher, told[0].train), (acme, both));
        assert_eq!((told[0].attempt, told[0].created_at), (1, START));
        let said = &told[0].message;
        assert!(
            said.contains("`main &lt;a&gt;`") && said.contains("`both`"),
            "{said}"
        );
        let url = told[0].webhook.as_ref().unwrap();
        assert_eq!(url.expose_secret(), "https://hooks.example/both");
        assert_eq!(told[0].channel.as_deref(), Some("#ops"));

        for train in [one, silent] {
            exhaust(&fixture, acme, train).await;
        }
        let told = claim_all(&fixture).await;
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].train == one && told[0].message.contains("`one`"));
        let types = "train_notices WHERE event_type = 'stationmaster.train.exhausted'";
        assert_eq!(fixture.count(types).await, 1);
    }
}

#[tokio::test]
async fn a_claim_is_bounded_and_leaves_out_who_is_busy() {
    for fixture in engines().await {
        let acme = fixture.publisher("acme").await.publisher.id;
        let other = fixture.publisher("other").await.publisher.id;
        for (publisher, count) in [(acme, 5), (other, 2)] {
            let train = train(&fixture, publisher, "one", Some(BOTH)).await;
            for _ in 0..count {
                exhaust(&fixture, publisher, train).await;
            }
        }
        let found = look(&fixture, &[], (4, 3)).await;
        let of = |publisher| {
            let claimed = found.claimed.iter();
            claimed.filter(|due| due.publisher == publisher).count()
        };
        assert_eq!((found.claimed.len(), of(acme) <= 3), (4, true));
        assert_eq!(of(acme) + of(other), 4);
        let found = look(&fixture, &[acme], (10, 10)).await;
        assert!(found.claimed.iter().all(|due| due.publisher == other));
        // A busy publisher's messages do not count as next, and neither do claimed ones before
        // their lease ends.
        let found = look(&fixture, &[acme], (10, 10)).await;
        assert_eq!(found.next, Some(START.plus(LEASE)));
        let found = look(&fixture, &[acme, other], (10, 10)).await;
        assert!(found.claimed.is_empty() && found.next.is_none());
    }
}

#[tokio::test]
async fn a_claim_runs_out_and_a_late_record_does_not_count() {
    for fixture in engines().await {
        let acme = fixture.publisher("acme").await.publisher.id;
        let train = train(&fixture, acme, "one", Some(BOTH)).await;
        exhaust(&fixture, acme, train).await;
        let first = claim_all(&fixture).await.remove(0);
        assert!(claim_all(&fixture).await.is_empty());
        fixture.clock.advance(LEASE);
        let second = claim_all(&fixture).await.remove(0);
        assert_eq!((second.id, second.attempt), (first.id, 2));
        assert!(!record(&fixture, &first, None, None).await);
        let later = START.plus(LEASE * 3);
        assert!(record(&fixture, &second, Some("dns"), Some(later)).await);
        let waits = look(&fixture, &[], (10, 10)).await;
        assert!(waits.claimed.is_empty() && waits.next == Some(later));

        fixture.clock.advance(LEASE * 2);
        let third = claim_all(&fixture).await.remove(0);
        assert!(record(&fixture, &third, None, None).await);
        assert!(!record(&fixture, &third, Some("dns"), None).await);
        let sent = "train_notices WHERE last_error IS NULL AND attempts = 3 \
                    AND next_attempt_at IS NULL AND finished_at IS NOT NULL";
        assert_eq!(fixture.count(sent).await, 1);
    }
}

#[tokio::test]
async fn the_last_message_is_shown_with_its_train_alone() {
    for fixture in engines().await {
        let acme = fixture.publisher("acme").await.publisher.id;
        let other = fixture.publisher("other").await.publisher.id;
        let train = train(&fixture, acme, "one", Some(BOTH)).await;
        let scoped = |of: PublisherId| fixture.store.scoped(&Scope::of_row(of.uuid(), None));
        assert_eq!(
            scoped(acme).trains().last_notice(train).await.unwrap(),
            None
        );
        exhaust(&fixture, acme, train).await;
        fixture.clock.advance(Duration::from_secs(1));
        exhaust(&fixture, acme, train).await;
        for due in claim_all(&fixture).await {
            let error = (due.created_at == START).then_some("dns");
            assert!(record(&fixture, &due, error, None).await);
        }
        let now = fixture.store.now();
        let last = scoped(acme)
            .trains()
            .last_notice(train)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(last.event_type, "stationmaster.train.exhausted");
        assert_eq!((last.attempts, last.error), (1, None));
        assert_eq!((last.created_at, last.finished_at), (now, Some(now)));
        assert_eq!(
            scoped(other).trains().last_notice(train).await.unwrap(),
            None
        );
    }
}

#[tokio::test]
async fn who_is_suspended_is_told_when_it_is_back() {
    for fixture in engines().await {
        let acme = fixture.publisher("acme").await.publisher.id;
        let train = train(&fixture, acme, "one", Some(BOTH)).await;
        exhaust(&fixture, acme, train).await;
        for set in [
            "status = 'suspended'",
            "status = 'deleted', deleted_at = 1, live_slug = NULL",
        ] {
            fixture
                .execute(&format!("UPDATE publishers SET {set}"))
                .await;
            let found = look(&fixture, &[], (10, 10)).await;
            assert!(found.claimed.is_empty() && found.next.is_none(), "{set}");
        }
        let sql = "UPDATE publishers SET status = 'active', deleted_at = NULL, live_slug = slug";
        fixture.execute(sql).await;
        assert_eq!(claim_all(&fixture).await.len(), 1);
    }
}

#[tokio::test]
async fn where_there_is_no_webhook_any_more_nothing_is_held_up() {
    for fixture in engines().await {
        let acme = fixture.publisher("acme").await.publisher.id;
        let mut gone = Vec::new();
        for slug in ["silenced", "damaged", "whole"] {
            let train = train(&fixture, acme, slug, Some(BOTH)).await;
            exhaust(&fixture, acme, train).await;
            gone.push(train);
        }
        for sql in [
            "UPDATE trains SET slack_webhook = NULL, slack_channel = NULL, slack_events = NULL \
             WHERE slug = 'silenced'",
            // A URL that was sealed for another train.
            "UPDATE trains SET slack_webhook = \
             (SELECT t.slack_webhook FROM trains t WHERE t.slug = 'whole') WHERE slug = 'damaged'",
        ] {
            fixture.execute(sql).await;
        }
        let claimed = claim_all(&fixture).await;
        assert_eq!(claimed.len(), 3);
        for due in &claimed {
            assert_eq!(due.webhook.is_some(), due.train == gone[2]);
        }
        fixture
            .execute("DELETE FROM trains WHERE slug = 'whole'")
            .await;
        let whole = claimed.iter().find(|due| due.train == gone[2]).unwrap();
        assert!(!record(&fixture, whole, None, None).await);
        assert_eq!(fixture.count("train_notices").await, 2);
    }
}

#[tokio::test]
async fn processes_share_and_take_nothing_twice() {
    for fixture in engines().await {
        let fixture = Arc::new(fixture);
        for at in 0..4 {
            let publisher = fixture.publisher(&format!("acme-{at}")).await.publisher.id;
            let train = train(&fixture, publisher, "one", Some(BOTH)).await;
            for _ in 0..10 {
                exhaust(&fixture, publisher, train).await;
            }
        }
        let takers: Vec<_> = (0..6)
            .map(|_| {
                let fixture = Arc::clone(&fixture);
                tokio::spawn(async move {
                    let mut taken = Vec::new();
                    // A caller that was slower than the others gets nothing, and tries again.
                    for _ in 0..20 {
                        let found = look(&fixture, &[], (5, 2)).await;
                        taken.extend(found.claimed.into_iter().map(|due| due.id));
                    }
                    taken
                })
            })
            .collect();
        let mut all = Vec::new();
        for taker in takers {
            all.extend(taker.await.unwrap());
        }
        let distinct: BTreeSet<NoticeId> = all.iter().copied().collect();
        assert_eq!((all.len(), distinct.len()), (40, 40));
        assert_eq!(fixture.count("train_notices WHERE attempts = 1").await, 40);
    }
}

#[tokio::test]
async fn the_sweep_takes_what_ended_long_ago() {
    for fixture in engines().await {
        let acme = fixture.publisher("acme").await.publisher.id;
        let train = train(&fixture, acme, "one", Some(BOTH)).await;
        for _ in 0..3 {
            exhaust(&fixture, acme, train).await;
        }
        let claimed = claim_all(&fixture).await;
        record(&fixture, &claimed[0], None, None).await;
        fixture.clock.advance(Duration::from_secs(1));
        record(&fixture, &claimed[1], Some("status"), None).await;
        let system = fixture.store.system();
        assert_eq!(
            system
                .operations()
                .sweep_table("train_notices", START, 10)
                .await
                .unwrap(),
            1
        );
        assert_eq!(fixture.count("train_notices").await, 2);
        let now = fixture.store.now();
        assert_eq!(
            system
                .operations()
                .sweep_table("train_notices", now, 10)
                .await
                .unwrap(),
            1
        );
        assert_eq!(
            system
                .operations()
                .sweep_table("train_notices", now, 10)
                .await
                .unwrap(),
            0
        );
        let waits = "train_notices WHERE finished_at IS NULL";
        assert_eq!(fixture.count(waits).await, 1);
    }
}

#[tokio::test]
async fn a_commit_wakes_the_sender_and_a_rollback_leaves_nothing() {
    for fixture in engines().await {
        let acme = fixture.publisher("acme").await.publisher.id;
        let train = train(&fixture, acme, "one", Some(BOTH)).await;
        let trigger = &NoticeTrigger::Exhausted(train, None);
        let refused: Result<()> = fixture
            .store
            .write(|tx| async move {
                notify(&tx, acme, trigger).await?;
                Err(domain::Problem::not_found().into())
            })
            .await;
        assert!(refused.is_err());
        let woken =
            |ms| tokio::time::timeout(Duration::from_millis(ms), fixture.store.notices_written());
        assert!(woken(50).await.is_err());
        assert_eq!(fixture.count("train_notices").await, 0);
        exhaust(&fixture, acme, train).await;
        assert!(woken(5000).await.is_ok());
    }
}
