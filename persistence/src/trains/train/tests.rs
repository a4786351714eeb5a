//! Trains on both engines.

use std::time::Duration;

use domain::train::open_webhook;
use secrecy::ExposeSecret as _;

use super::*;
use crate::{
    fixture::{context, engines, no_content},
    runs::tests::{PAGE, Slot, code, house, slug},
    trains::accounts::tests::{make as make_account, new_account},
};

fn new_train(name: &str) -> NewTrain {
    NewTrain {
        slug: slug(name),
        description: None,
        enabled: true,
        sticky: false,
        slack: None,
    }
}

pub(crate) async fn make(scoped: &Scoped, name: &str) -> Result<Train> {
    let slot = Slot::new();
    scoped
        .trains()
        .create_train(&context(), new_train(name), |train| slot.keep(train))
        .await?;
    Ok(slot.take())
}

pub(crate) async fn lend(
    scoped: &Scoped,
    train: &str,
    accounts: &[(AccountId, u16)],
) -> Result<Train> {
    let slot = Slot::new();
    let (slug, accounts) = (slug(train), accounts.to_vec());
    scoped
        .trains()
        .set_train_accounts(&context(), &slug, accounts, None, |train| slot.keep(train))
        .await?;
    Ok(slot.take())
}

async fn change(scoped: &Scoped, train: &str, patch: TrainPatch) -> Result<Train> {
    let (slot, slug) = (Slot::new(), slug(train));
    scoped
        .trains()
        .update_train(&context(), &slug, patch, None, |train| slot.keep(train))
        .await?;
    Ok(slot.take())
}

fn slack(patch: SlackPatch) -> TrainPatch {
    TrainPatch {
        slack: Some(Some(patch)),
        ..TrainPatch::default()
    }
}

#[tokio::test]
async fn accounts_stand_in_order_whatever_the_order_of_the_request() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let mut ids = Vec::new();
        for n in 0..4 {
            let account = make_account(&acme, new_account(&format!("n{n}"))).await;
            ids.push(account.unwrap().id);
        }
        ids.sort();
        make(&acme, "night").await.unwrap();
        let described = TrainPatch {
            description: Some(Some("The nightly jobs.".into())),
            ..TrainPatch::default()
        };
        change(&acme, "night", described).await.unwrap();
        let accounts = [(ids[3], 1), (ids[2], 0), (ids[0], 1), (ids[1], 999)];
        let train = lend(&acme, "night", &accounts).await.unwrap();
        let order: Vec<_> = train.accounts.iter().map(|member| member.account).collect();
        assert_eq!(order, [ids[2], ids[0], ids[3], ids[1]]);
        assert_eq!(acme.trains().train(&slug("night")).await.unwrap(), train);
        assert_eq!(train.description.as_deref(), Some("The nightly jobs."));
        assert_eq!(
            acme.trains().trains(PAGE).await.unwrap().items,
            std::slice::from_ref(&train)
        );
        // The same accounts in another order change nothing.
        let mut again = accounts;
        again.reverse();
        assert_eq!(lend(&acme, "night", &again).await.unwrap(), train);
        let none = lend(&acme, "night", &[]).await.unwrap();
        assert_eq!(
            (none.accounts.len(), none.revision),
            (0, train.revision + 1)
        );
    }
}

#[tokio::test]
async fn a_list_is_one_query_and_pages_by_trains() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let other = house(&fixture, "other", &[]).await;
        make(&other, "t0").await.unwrap();
        let mut ids = Vec::new();
        for n in 0..3 {
            let account = make_account(&acme, new_account(&format!("n{n}"))).await;
            ids.push((account.unwrap().id, 0));
        }
        for n in 0..5 {
            fixture.clock.advance(Duration::from_secs(1));
            make(&acme, &format!("t{n}")).await.unwrap();
            lend(&acme, &format!("t{n}"), &ids[..n.min(3)])
                .await
                .unwrap();
        }
        let mut page = PageRequest {
            limit: 2,
            after: None,
        };
        let mut seen = Vec::new();
        loop {
            // The page is read with one statement.
            assert_eq!(
                query(acme.scope.uuid(), &Which::Part(&page))
                    .text()
                    .matches("FROM trains")
                    .count(),
                1
            );
            let part = acme.trains().trains(page).await.unwrap();
            seen.extend(
                part.items
                    .into_iter()
                    .map(|train| (train.slug, train.accounts.len())),
            );
            match part.next {
                Some(next) => page.after = Some(next),
                None => break,
            }
        }
        let expected = [("t4", 3), ("t3", 3), ("t2", 2), ("t1", 1), ("t0", 0)];
        assert_eq!(seen, expected.map(|(slug, count)| (slug.to_owned(), count)));
    }
}

#[tokio::test]
async fn foreign_accounts_and_absent_ones_are_answered_alike() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let other = house(&fixture, "other", &[]).await;
        let mine = make_account(&acme, new_account("mine")).await.unwrap().id;
        let theirs = make_account(&other, new_account("theirs"))
            .await
            .unwrap()
            .id;
        let absent = AccountId::generate(fixture.store.now());
        make(&acme, "night").await.unwrap();
        let before = lend(&acme, "night", &[(mine, 0)]).await.unwrap();
        let mut refusals = Vec::new();
        for account in [theirs, absent] {
            let refused = lend(&acme, "night", &[(mine, 1), (account, 0)]).await;
            refusals.push(refused.unwrap_err().to_string());
        }
        assert_eq!(refusals[0], refusals[1]);
        assert_eq!(acme.trains().train(&slug("night")).await.unwrap(), before);
        assert_eq!(
            code(lend(&other, "night", &[(theirs, 0)]).await),
            Code::NotFound
        );
    }
}

#[tokio::test]
async fn where_people_read_is_sealed_and_merged() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        make(&acme, "night").await.unwrap();
        let channel = SlackPatch {
            channel: Some(Some("#night".into())),
            ..SlackPatch::default()
        };
        let refused = change(&acme, "night", slack(channel.clone())).await;
        assert_eq!(code(refused), Code::ValidationFailed, "no URL yet");
        let first = SlackPatch {
            webhook_url: Some(SecretString::from("https://hooks.example/T/B/first")),
            events: Some(vec![NoticeKind::TrainExhausted]),
            ..SlackPatch::default()
        };
        change(&acme, "night", slack(first)).await.unwrap();
        let row = async || {
            let row = of(acme.scope.uuid()).one(fixture.store.read()).await;
            row.unwrap().unwrap()
        };
        let sealed = row().await.slack_webhook.unwrap();
        let keys = fixture
            .store
            .inner
            .keys
            .of(fixture.store.read(), acme.scope.uuid());
        let key = keys.await.unwrap().data;
        let train = TrainId::from_uuid(row().await.id);
        let opened = open_webhook(&key, acme.scope.publisher(), train, &sealed).unwrap();
        assert_eq!(opened.expose_secret(), "https://hooks.example/T/B/first");

        let merged = change(&acme, "night", slack(channel.clone()))
            .await
            .unwrap();
        let expected = Slack {
            channel: Some("#night".into()),
            events: vec![NoticeKind::TrainExhausted],
        };
        assert_eq!(merged.slack, Some(expected));
        assert_eq!(row().await.slack_webhook.unwrap(), sealed);
        let same = change(&acme, "night", slack(channel)).await.unwrap();
        assert_eq!(same, merged, "nothing changed");
        let none = TrainPatch {
            slack: Some(None),
            ..TrainPatch::default()
        };
        let none = change(&acme, "night", none).await.unwrap();
        assert_eq!(none.slack, None);
        assert_eq!(row().await.slack_webhook, None);
    }
}

#[tokio::test]
async fn a_train_goes_with_all_that_hangs_on_it_and_leaves_its_accounts() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let account = make_account(&acme, new_account("one")).await.unwrap();
        for name in ["night", "day"] {
            make(&acme, name).await.unwrap();
            lend(&acme, name, &[(account.id, 0)]).await.unwrap();
        }
        for table in [
            "train_tokens (publisher_id, id, train_id, last_four, source, created_at) \
             SELECT publisher_id, id, id, 'abcd', 'api', 1",
            "train_notices (publisher_id, id, train_id, event_type, message, attempts, \
             next_attempt_at, created_at) \
             SELECT publisher_id, id, id, 'train.exhausted', 'x', 0, 1, 1",
            "train_token_hashes (hash, publisher_id, token_id) \
             SELECT slack_webhook, publisher_id, id",
        ] {
            let sql = format!("INSERT INTO {table} FROM trains");
            let hash = match fixture.store.backend() {
                sea_orm::DbBackend::Sqlite => "CAST(slug AS BLOB)",
                _ => "slug::bytea",
            };
            fixture.execute(&sql.replace("slack_webhook", hash)).await;
        }
        assert_eq!(acme.usage().await.unwrap().train_tokens, 2);
        acme.trains()
            .delete_train(&context(), &slug("night"), None, |()| no_content())
            .await
            .unwrap();
        for table in [
            "trains",
            "train_accounts",
            "train_tokens",
            "train_token_hashes",
            "train_notices",
        ] {
            assert_eq!(fixture.count(table).await, 1, "{table}");
        }
        let usage = acme.usage().await.unwrap();
        assert_eq!(
            (usage.trains, usage.train_tokens, usage.accounts),
            (1, 1, 1)
        );
        let gone = acme
            .trains()
            .delete_train(&context(), &slug("night"), None, |()| no_content())
            .await;
        assert_eq!(code(gone), Code::NotFound);
        make(&acme, "night").await.unwrap();
        assert_eq!(code(make(&acme, "night").await), Code::SlugTaken);
        assert_eq!(acme.trains().trains(PAGE).await.unwrap().items.len(), 2);
    }
}
