//! Accounts on both engines: what is stored of them, and what the engines refuse to store.

use std::time::Duration;

use domain::account::OauthTokens;
use sea_orm::{ConnectionTrait as _, DbBackend};
use secrecy::{ExposeSecret as _, SecretString};

use super::*;
use crate::{
    PublisherPatch, QuotasPatch,
    fixture::{Fixture, START, context, engines, no_content},
    runs::tests::{PAGE, Slot, code, house, slug},
    trains::train::tests::{lend, make as make_train},
};

fn secret(text: &str) -> SecretString {
    SecretString::from(text.to_owned())
}

pub(crate) fn new_account(name: &str) -> NewAccount {
    NewAccount {
        name: name.to_owned(),
        provider: "local".into(),
        base_url: "https://models.example".into(),
        header: UpstreamHeader::bearer(),
        credential: Credential::ApiKey(secret("sk-0123456789-abcd")),
        oauth: None,
        enabled: true,
        ceilings: Ceilings::default(),
    }
}

fn oauth_account(name: &str, expires_at: Timestamp) -> NewAccount {
    let client = OauthClient {
        token_url: "https://auth.example/token".into(),
        client_id: "me".into(),
        scopes: vec!["a".into(), "b:c".into()],
    };
    NewAccount {
        credential: Credential::Oauth(OauthTokens {
            access_token: secret("at-0123456789-wxyz"),
            refresh_token: secret("rt-0123456789"),
            client_secret: None,
        }),
        oauth: Some((client, expires_at)),
        ..new_account(name)
    }
}

pub(crate) async fn make(scoped: &Scoped, new: NewAccount) -> Result<Account> {
    let slot = Slot::new();
    scoped
        .trains()
        .create_account(&context(), new, |account| slot.keep(account))
        .await?;
    Ok(slot.take())
}

async fn change(scoped: &Scoped, id: AccountId, patch: AccountPatch) -> Result<Account> {
    let (slot, context) = (Slot::new(), context());
    let patch_of = |_: &Account| patch.clone();
    // The future is too large for the stacks of its callers.
    let trains = scoped.trains();
    let changed = trains.update_account(&context, id, None, patch_of, |account| slot.keep(account));
    Box::pin(changed).await?;
    Ok(slot.take())
}

/// How often other processes were told that a publisher changed.
async fn told(fixture: &Fixture) -> i64 {
    fixture.count("credential_changes").await
}

#[tokio::test]
async fn an_account_is_stored_sealed_and_reads_back_without_its_credential() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let expires_at = START.plus(Duration::from_hours(1));
        let before = told(&fixture).await;
        let made = make(&acme, oauth_account("one", expires_at)).await.unwrap();
        assert_eq!(told(&fixture).await, before + 1);
        assert_eq!(acme.trains().account(made.id).await.unwrap(), made);
        assert_eq!(
            (made.last_four.as_str(), made.health),
            ("wxyz", AccountHealth::Ok)
        );
        assert_eq!(made.oauth.unwrap().scopes, ["a", "b:c"]);
        assert_eq!(made.expires_at, Some(expires_at));

        let row = accounts::Entity::find_by_id((acme.scope.uuid(), made.id.uuid()))
            .one(fixture.store.read())
            .await
            .unwrap()
            .unwrap();
        let due = Timestamp::from_ms(row.refresh_due_at.unwrap());
        let ahead = expires_at.since(due).as_secs();
        assert!((600..=720).contains(&ahead), "{ahead}");
        let keys = fixture
            .store
            .inner
            .keys
            .of(fixture.store.read(), row.publisher_id);
        let key = keys.await.unwrap().data;
        let opened = Credential::open(&key, &sealed_for(&row), &row.sealed).unwrap();
        assert_eq!(opened.bearer().expose_secret(), "at-0123456789-wxyz");
    }
}

#[tokio::test]
async fn what_is_as_wished_changes_nothing_and_a_credential_stays() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let one = make(&acme, new_account("one")).await.unwrap();
        let same = AccountPatch {
            name: Some("one".into()),
            enabled: Some(true),
            ceilings: Some(Ceilings::default()),
        };
        let before = told(&fixture).await;
        assert_eq!(change(&acme, one.id, same).await.unwrap(), one);
        assert_eq!(told(&fixture).await, before);
        let sealed = async || {
            let row = of(acme.scope.uuid()).one(fixture.store.read()).await;
            row.unwrap().unwrap().sealed
        };
        let was = sealed().await;
        let ceilings = Ceilings {
            requests_5h: Some(7),
            ..Ceilings::default()
        };
        let patch = AccountPatch {
            enabled: Some(false),
            ceilings: Some(ceilings),
            ..AccountPatch::default()
        };
        let changed = change(&acme, one.id, patch).await.unwrap();
        assert_eq!((changed.enabled, changed.ceilings), (false, ceilings));
        assert_eq!(changed.revision, one.revision + 1);
        assert_eq!(told(&fixture).await, before + 1);
        assert_eq!(sealed().await, was);
    }
}

#[tokio::test]
async fn names_are_unique_within_a_publisher() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let other = house(&fixture, "other", &[]).await;
        let one = make(&acme, new_account("one")).await.unwrap();
        make(&other, new_account("one")).await.unwrap();
        assert_eq!(code(make(&acme, new_account("one")).await), Code::NameTaken);
        fixture.clock.advance(Duration::from_secs(1));
        make(&acme, new_account("two")).await.unwrap();
        let patch = AccountPatch {
            name: Some("two".into()),
            ..AccountPatch::default()
        };
        assert_eq!(code(change(&acme, one.id, patch).await), Code::NameTaken);
        let page = acme.trains().accounts(PAGE).await.unwrap();
        let names: Vec<String> = page.items.into_iter().map(|one| one.name).collect();
        assert_eq!(names, ["two", "one"], "newest first, and nobody else's");
        assert_eq!(code(other.trains().account(one.id).await), Code::NotFound);
    }
}

#[tokio::test]
async fn a_replacement_that_fails_leaves_everything_as_it_was() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let one = make(&acme, new_account("one")).await.unwrap();
        make(&acme, new_account("two")).await.unwrap();
        make_train(&acme, "night").await.unwrap();
        let before = lend(&acme, "night", &[(one.id, 3)]).await.unwrap();
        let replace = async |name: &str| {
            let slot = Slot::new();
            let new = new_account(name);
            acme.trains()
                .replace_account(&context(), one.id, new, |account| slot.keep(account))
                .await?;
            Ok(slot.take())
        };
        assert_eq!(code(replace("two").await), Code::NameTaken);
        assert_eq!(acme.trains().account(one.id).await.unwrap(), one);
        assert_eq!(acme.trains().train(&slug("night")).await.unwrap(), before);

        let new: Account = replace("one").await.unwrap();
        assert_eq!(new.name, "one");
        let after = acme.trains().train(&slug("night")).await.unwrap();
        assert_eq!(
            (after.accounts[0].account, after.accounts[0].priority),
            (new.id, 3)
        );
        assert_eq!(
            (after.accounts.len(), after.revision),
            (1, before.revision + 1)
        );
        assert_eq!(code(replace("three").await), Code::NotFound);
    }
}

#[tokio::test]
async fn many_accounts_at_once_stay_within_the_quota() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let quotas = QuotasPatch {
            accounts: Some(3),
            ..QuotasPatch::default()
        };
        let patch = PublisherPatch {
            quotas,
            ..PublisherPatch::default()
        };
        let (system, id) = (fixture.store.system(), acme.scope.publisher());
        system
            .publishers()
            .update_publisher(&context(), id, patch, None, |_| no_content())
            .await
            .unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..8 {
            let acme = acme.clone();
            tasks.spawn(async move { make(&acme, new_account(&format!("n{n}"))).await.is_ok() });
        }
        let made = tasks.join_all().await.into_iter().filter(|made| *made);
        assert_eq!(made.count(), 3);
        assert_eq!(acme.usage().await.unwrap().accounts, 3);
        // A replacement needs no free quota.
        let one = acme.trains().accounts(PAGE).await.unwrap().items[0].id;
        acme.trains()
            .replace_account(&context(), one, new_account("new"), |_| no_content())
            .await
            .unwrap();
    }
}

/// The database's constraints, whatever the code writes.
#[tokio::test]
async fn the_engines_refuse_combinations_that_can_not_be() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        make(&acme, new_account("key")).await.unwrap();
        let expires_at = START.plus(Duration::from_hours(1));
        make(&acme, oauth_account("tokens", expires_at))
            .await
            .unwrap();
        for (name, wrong) in [
            ("key", "token_url = 'https://auth.example'"),
            ("key", "client_id = 'me'"),
            ("key", "scopes = 'a'"),
            ("key", "expires_at = 1"),
            ("key", "refresh_due_at = 1"),
            ("key", "refreshed_at = 1"),
            ("key", "credential_type = 'oauth'"),
            ("key", "credential_type = 'password'"),
            ("tokens", "credential_type = 'api_key'"),
            ("tokens", "token_url = NULL"),
            ("tokens", "client_id = NULL"),
            ("tokens", "health = 'failed'"),
            ("tokens", "health = 'well'"),
            ("tokens", "failed_at = 1"),
            ("tokens", "refresh_lease_until = 1"),
            ("tokens", "name = 'key'"),
        ] {
            let sql = &format!("UPDATE accounts SET {wrong} WHERE name = '{name}'");
            let done = fixture.store.write(|tx| async move {
                tx.db().execute_unprepared(sql).await?;
                Ok(())
            });
            assert!(done.await.is_err(), "{:?}: {sql}", fixture.store.backend());
        }
        let accounts = "accounts WHERE health = 'ok'";
        assert_eq!(fixture.count(accounts).await, 2);
        let foreign_key = match fixture.store.backend() {
            DbBackend::Sqlite => "x'00000000000000000000000000000001'",
            _ => "'00000000-0000-0000-0000-000000000001'",
        };
        let sql = &format!(
            "INSERT INTO train_accounts (publisher_id, train_id, account_id, priority) \
             SELECT publisher_id, {foreign_key}, id, 0 FROM accounts"
        );
        let done = fixture.store.write(|tx| async move {
            tx.db().execute_unprepared(sql).await?;
            Ok(())
        });
        assert!(done.await.is_err(), "a place in no train");
    }
}
