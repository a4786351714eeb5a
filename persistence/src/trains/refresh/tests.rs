use std::time::Duration;

use domain::{
    Code, Timestamp,
    account::{Credential, OauthTokens, SealedFor},
    id::{AccountId, Id as _, PublisherId},
    upstream::{Grant, TokenError, read_answer},
};
use sea_orm::ActiveValue::Set;
use secrecy::{ExposeSecret as _, SecretString};

use super::{RefreshClaim, RefreshLease, RefreshRequest};
use crate::{
    StoreError,
    fixture::{Fixture, START, context, engines},
    store::{Scoped, entity::accounts, scope::Scope},
};

const LEASE: Duration = Duration::from_secs(45);
const HOUR: Duration = Duration::from_hours(1);

fn secret(text: &str) -> SecretString {
    SecretString::from(text.to_owned())
}

impl Fixture {
    fn scoped(&self, publisher: PublisherId) -> Scoped {
        self.store.scoped(&Scope::of_row(publisher.uuid(), None))
    }

    /// An OAuth account that expires in an hour and is due at `due`.
    async fn oauth_account(&self, publisher: PublisherId, due: Timestamp) -> AccountId {
        let id = AccountId::generate(self.store.now());
        let tokens = Credential::Oauth(OauthTokens {
            access_token: secret("at-1"),
            refresh_token: secret("rt-1"),
            client_secret: Some(secret("cs")),
        });
        let keys = self
            .store
            .inner
            .keys
            .of(self.store.read(), publisher.uuid());
        let sealed_for = SealedFor {
            publisher,
            account: id,
            base_url: "https://api.example",
            token_url: Some("https://id.example/token"),
        };
        let sealed = tokens.seal(&keys.await.unwrap().data, &sealed_for);
        self.insert(accounts::ActiveModel {
            publisher_id: Set(publisher.uuid()),
            id: Set(id.uuid()),
            name: Set(id.to_string()),
            provider: Set("acme".into()),
            base_url: Set("https://api.example".into()),
            header_name: Set("authorization".into()),
            header_scheme: Set(Some("Bearer".into())),
            credential_type: Set("oauth".into()),
            sealed: Set(sealed),
            credential_version: Set(1),
            last_four: Set("at-1".into()),
            enabled: Set(true),
            health: Set("ok".into()),
            expires_at: Set(Some(START.plus(HOUR).ms())),
            token_url: Set(Some("https://id.example/token".into())),
            client_id: Set(Some("client".into())),
            refresh_due_at: Set(Some(due.ms())),
            refresh_failures: Set(0),
            revision: Set(1),
            created_at: Set(START.ms()),
            updated_at: Set(START.ms()),
            ..Default::default()
        })
        .await;
        id
    }
}

fn wanted(seen: i64, force: bool) -> RefreshRequest {
    RefreshRequest {
        seen,
        force,
        waited: None,
    }
}

fn grant() -> Grant {
    let body = br#"{"access_token":"at-22-longer","token_type":"Bearer","refresh_token":"rt-2","expires_in":3600}"#;
    read_answer(200, body).unwrap()
}

fn refused() -> TokenError {
    read_answer(400, br#"{"error":"invalid_grant"}"#).unwrap_err()
}

async fn ours(scoped: &Scoped, account: AccountId, seen: i64) -> RefreshLease {
    match scoped
        .trains()
        .take_refresh(account, wanted(seen, true), LEASE)
        .await
        .unwrap()
    {
        RefreshClaim::Claimed(lease) => *lease,
        other => panic!("{other:?}"),
    }
}

fn is_lost(error: &StoreError) -> bool {
    matches!(error, StoreError::Refused(problem) if problem.code == Code::RefreshFailed)
}

#[tokio::test]
async fn one_at_a_time_and_the_others_hear_of_the_new_token() {
    for fixture in engines().await {
        let publisher = fixture.publisher("acme").await.publisher.id;
        let account = fixture.oauth_account(publisher, START).await;
        let scoped = fixture.scoped(publisher);
        let trains = scoped.trains();
        let take = |seen| trains.take_refresh(account, wanted(seen, false), LEASE);

        let lease = ours(&scoped, account, 1).await;
        assert_eq!(lease.tokens.refresh_token.expose_secret(), "rt-1");
        assert!(matches!(
            take(1).await.unwrap(),
            RefreshClaim::InProgress { failures: 0 }
        ));
        fixture.clock.advance(Duration::from_secs(3));
        let kept = scoped
            .trains()
            .keep_refreshed(&context(), &lease, &grant(), START)
            .await;
        let token = kept.unwrap();
        assert_eq!(token.expires_at, Some(START.plus(HOUR)));
        assert!(matches!(take(1).await.unwrap(), RefreshClaim::Replaced));

        let read = scoped.trains().account_token(account).await.unwrap();
        assert_eq!(
            (read.version, read.access_token.expose_secret()),
            (2, "at-22-longer")
        );
        let lease = ours(&scoped, account, 2).await;
        assert_eq!(lease.tokens.refresh_token.expose_secret(), "rt-2");
        assert_eq!(lease.tokens.client_secret.unwrap().expose_secret(), "cs");
        let audited = "audit_events WHERE action = 'account.refreshed'";
        assert_eq!(fixture.count(audited).await, 1);
    }
}

#[tokio::test]
async fn many_who_take_at_once_are_one() {
    for fixture in engines().await {
        let publisher = fixture.publisher("acme").await.publisher.id;
        let account = fixture.oauth_account(publisher, START).await;
        let mut takers = Vec::new();
        for _ in 0..20 {
            let scoped = fixture.scoped(publisher);
            takers.push(tokio::spawn(async move {
                scoped
                    .trains()
                    .take_refresh(account, wanted(1, true), LEASE)
                    .await
                    .unwrap()
            }));
        }
        let mut ours = 0;
        for taker in takers {
            ours += u32::from(matches!(taker.await.unwrap(), RefreshClaim::Claimed(_)));
        }
        assert_eq!(ours, 1);
    }
}

#[tokio::test]
async fn who_waited_for_a_try_that_failed_does_not_try_again() {
    for fixture in engines().await {
        let publisher = fixture.publisher("acme").await.publisher.id;
        let account = fixture.oauth_account(publisher, START).await;
        let scoped = fixture.scoped(publisher);
        let lease = ours(&scoped, account, 1).await;
        let trains = scoped.trains();
        let take = |waited| {
            let request = RefreshRequest {
                waited,
                ..wanted(1, true)
            };
            trains.take_refresh(account, request, LEASE)
        };
        let RefreshClaim::InProgress { failures } = take(None).await.unwrap() else {
            panic!("it is free")
        };
        let passing = TokenError::passing("timeout");
        let kept = scoped
            .trains()
            .keep_refresh_failure(&context(), &lease, &passing)
            .await;
        kept.unwrap();
        let claim = take(Some(failures)).await.unwrap();
        assert!(
            matches!(claim, RefreshClaim::BackingOff { .. }),
            "{claim:?}"
        );
        // A caller that has not waited may claim it.
        assert!(matches!(
            take(None).await.unwrap(),
            RefreshClaim::Claimed(_)
        ));
    }
}

#[tokio::test]
async fn a_lease_that_ran_out_stores_nothing_once_another_has_it() {
    for fixture in engines().await {
        let publisher = fixture.publisher("acme").await.publisher.id;
        let account = fixture.oauth_account(publisher, START).await;
        let scoped = fixture.scoped(publisher);
        let slow = ours(&scoped, account, 1).await;
        fixture.clock.advance(LEASE);
        let next = ours(&scoped, account, 1).await;
        let now = fixture.store.now();
        let lost = scoped
            .trains()
            .keep_refreshed(&context(), &slow, &grant(), now)
            .await;
        assert!(is_lost(&lost.unwrap_err()));
        let lost = scoped
            .trains()
            .keep_refresh_failure(&context(), &slow, &refused())
            .await;
        assert!(is_lost(&lost.unwrap_err()));
        assert!(!scoped.trains().account_token(account).await.unwrap().failed);
        let kept = scoped
            .trains()
            .keep_refreshed(&context(), &next, &grant(), now)
            .await;
        assert_eq!(kept.unwrap().version, 2);
    }
}

#[tokio::test]
async fn a_passing_failure_waits_and_never_ends_the_account() {
    for fixture in engines().await {
        let publisher = fixture.publisher("acme").await.publisher.id;
        let account = fixture.oauth_account(publisher, START).await;
        let scoped = fixture.scoped(publisher);
        fixture.clock.advance(HOUR * 2);
        for failures in 1..=12 {
            let lease = ours(&scoped, account, 1).await;
            let passing = TokenError::passing("timeout");
            let kept = scoped
                .trains()
                .keep_refresh_failure(&context(), &lease, &passing)
                .await;
            kept.unwrap();
            let claim = scoped
                .trains()
                .take_refresh(account, wanted(1, false), LEASE)
                .await
                .unwrap();
            let RefreshClaim::BackingOff { at, reason } = claim else {
                panic!("after {failures}: {claim:?}")
            };
            assert!(at > fixture.store.now() && reason == "timeout");
            assert!(at <= fixture.store.now().plus(Duration::from_secs(72)));
        }
        assert!(!scoped.trains().account_token(account).await.unwrap().failed);
        assert_eq!(fixture.count("events").await, 0);
        let due = fixture
            .store
            .system()
            .trains()
            .due_refreshes(10, 10)
            .await
            .unwrap();
        assert!(due.is_empty(), "{due:?}");
        fixture.clock.advance(Duration::from_secs(72));
        let due = fixture
            .store
            .system()
            .trains()
            .due_refreshes(10, 10)
            .await
            .unwrap();
        assert_eq!(due[0].account, account);
    }
}

#[tokio::test]
async fn a_spent_grant_ends_the_account_is_told_once_and_a_success_mends_it() {
    for fixture in engines().await {
        let publisher = fixture.publisher("acme").await.publisher.id;
        let account = fixture.oauth_account(publisher, START).await;
        let scoped = fixture.scoped(publisher);
        for _ in 0..2 {
            let lease = ours(&scoped, account, 1).await;
            let kept = scoped
                .trains()
                .keep_refresh_failure(&context(), &lease, &refused())
                .await;
            kept.unwrap();
            assert!(scoped.trains().account_token(account).await.unwrap().failed);
        }
        let told = "events WHERE event_type = 'stationmaster.account.refresh_failed'";
        assert_eq!(fixture.count(told).await, 1);
        let audited = "audit_events WHERE action = 'account.refresh_failed'";
        assert_eq!(fixture.count(audited).await, 2);
        fixture.clock.advance(HOUR * 24);
        let due = fixture
            .store
            .system()
            .trains()
            .due_refreshes(10, 10)
            .await
            .unwrap();
        assert!(due.is_empty(), "{due:?}");
        let claim = scoped
            .trains()
            .take_refresh(account, wanted(1, false), LEASE)
            .await
            .unwrap();
        assert!(
            matches!(claim, RefreshClaim::BackingOff { .. }),
            "{claim:?}"
        );

        let lease = ours(&scoped, account, 1).await;
        let now = fixture.store.now();
        let kept = scoped
            .trains()
            .keep_refreshed(&context(), &lease, &grant(), now)
            .await;
        kept.unwrap();
        assert!(!scoped.trains().account_token(account).await.unwrap().failed);
        let well = "accounts WHERE health_reason IS NULL AND failed_at IS NULL \
                    AND refresh_failures = 0 AND refresh_due_at IS NOT NULL";
        assert_eq!(fixture.count(well).await, 1);
    }
}

#[tokio::test]
async fn what_is_due_comes_from_all_publishers_and_failing_ones_last() {
    for fixture in engines().await {
        let mut publishers = Vec::new();
        for slug in ["one", "two", "gone"] {
            publishers.push(fixture.publisher(slug).await.publisher.id);
        }
        for _ in 0..5 {
            fixture.oauth_account(publishers[0], START).await;
        }
        let second = fixture.oauth_account(publishers[1], START.plus(HOUR)).await;
        fixture.oauth_account(publishers[2], START).await;
        fixture
            .execute("UPDATE publishers SET status = 'suspended' WHERE slug = 'gone'")
            .await;
        let first = fixture
            .store
            .system()
            .trains()
            .due_refreshes(10, 3)
            .await
            .unwrap();
        assert_eq!(first.len(), 3);
        fixture
            .execute(
                "UPDATE accounts SET refresh_failures = 1 WHERE refresh_due_at <= 1800000000000",
            )
            .await;
        fixture.clock.advance(HOUR);
        let due = fixture
            .store
            .system()
            .trains()
            .due_refreshes(10, 3)
            .await
            .unwrap();
        assert_eq!((due.len(), due[0].account), (4, second));
        let due = fixture
            .store
            .system()
            .trains()
            .due_refreshes(2, 3)
            .await
            .unwrap();
        assert_eq!(due.len(), 2);

        let scoped = fixture.scoped(publishers[1]);
        ours(&scoped, second, 1).await;
        let due = fixture
            .store
            .system()
            .trains()
            .due_refreshes(10, 3)
            .await
            .unwrap();
        assert!(due.iter().all(|one| one.account != second));
    }
}

#[tokio::test]
async fn another_publisher_s_account_is_absent() {
    for fixture in engines().await {
        let owner = fixture.publisher("acme").await.publisher.id;
        let other = fixture.publisher("other").await.publisher.id;
        let account = fixture.oauth_account(owner, START).await;
        let stranger = fixture.scoped(other);
        let absent = |error: &StoreError| matches!(error, StoreError::Refused(p) if p.code == Code::NotFound);
        assert!(absent(
            &stranger.trains().account_token(account).await.unwrap_err()
        ));
        let take = stranger
            .trains()
            .take_refresh(account, wanted(1, true), LEASE)
            .await;
        assert!(absent(&take.unwrap_err()));
        let lease = ours(&fixture.scoped(owner), account, 1).await;
        let kept = stranger
            .trains()
            .keep_refreshed(&context(), &lease, &grant(), START)
            .await;
        assert!(is_lost(&kept.unwrap_err()));
    }
}
