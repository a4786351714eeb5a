//! Resolving on both engines: what is cached, for how long, and what reports cause.

use std::time::Duration;

use domain::{
    account::Credential,
    lending::UseOutcome,
    token::{TokenHash, last_four},
};
use secrecy::{ExposeSecret as _, SecretString};

use super::{reports::AccountReport, *};
use crate::{
    MintedTrainToken, NewTrainToken, Train as StoredTrain,
    fixture::{Fixture, context, engines, no_content},
    runs::tests::{Slot, code, house, slug},
    trains::{
        accounts::tests::{make as make_account, new_account},
        train::tests::{lend, make as make_train},
    },
};

const MINUTE: Duration = Duration::from_mins(1);

/// A publisher whose train `chat` has the accounts `a0`, `a1`, … in this order.
struct House {
    acme: Scoped,
    train: StoredTrain,
    accounts: Vec<AccountId>,
}

async fn with_accounts(fixture: &Fixture, count: u16) -> House {
    let acme = house(fixture, "acme", &[]).await;
    make_train(&acme, "chat").await.unwrap();
    let mut accounts = Vec::new();
    for number in 0..count {
        let mut new = new_account(&format!("a{number}"));
        let key = format!("sk-0123456789-{number:04}");
        new.credential = Credential::ApiKey(SecretString::from(key));
        accounts.push(make_account(&acme, new).await.unwrap().id);
    }
    let places: Vec<_> = accounts.iter().copied().zip(0..).collect();
    let train = lend(&acme, "chat", &places).await.unwrap();
    House {
        acme,
        train,
        accounts,
    }
}

impl House {
    /// A token that does not exist any more.
    fn reporter(&self) -> domain::id::TokenId {
        domain::id::TokenId::from_uuid(self.train.id.uuid())
    }

    async fn by(&self) -> CredentialPool {
        self.acme
            .trains()
            .credential_pool(self.train.id)
            .await
            .unwrap()
            .unwrap()
    }

    async fn choose(&self, criteria: AccountCriteria<'_>) -> Result<AccountId, Exhausted> {
        let now = self.acme.store.now();
        self.by()
            .await
            .choose(&criteria, now)
            .map(|account| account.id)
    }

    async fn chosen(&self) -> Option<usize> {
        let chosen = self.choose(AccountCriteria::default()).await.ok()?;
        self.accounts.iter().position(|id| *id == chosen)
    }

    async fn chosen_for(&self, model: &str) -> Option<usize> {
        let criteria = AccountCriteria {
            model: Some(model),
            ..AccountCriteria::default()
        };
        let chosen = self.choose(criteria).await.ok()?;
        self.accounts.iter().position(|id| *id == chosen)
    }

    fn report_of(&self, at: usize, outcome: UseOutcome) -> AccountReport {
        AccountReport {
            account: self.accounts[at],
            outcome,
            model: None,
            retry_after: None,
            requests: 0,
            tokens: 0,
        }
    }

    async fn report(&self, report: AccountReport) {
        let token = self.reporter();
        let trains = self.acme.trains();
        let reported = trains.report(self.train.id, token, &report);
        reported.await.unwrap();
    }

    async fn says(&self, at: usize, outcome: UseOutcome) {
        self.report(self.report_of(at, outcome)).await;
    }

    async fn token(&self, new: NewTrainToken) -> MintedTrainToken {
        let (slot, slug) = (Slot::new(), slug("chat"));
        self.acme
            .trains()
            .mint_train_token(&context(), &slug, new, |minted| slot.keep(minted))
            .await
            .unwrap();
        slot.take()
    }

    /// Reads a snapshot after all earlier changes were polled, so that none of them invalidates it.
    async fn settled(&self) -> Arc<Snapshot> {
        tokio::time::sleep(Duration::from_millis(600)).await;
        self.by().await;
        self.kept().unwrap()
    }

    /// The current snapshot, if it is still trusted.
    fn kept(&self) -> Option<Arc<Snapshot>> {
        let lending = self.acme.store.state::<PoolCache>();
        lending.tenant(self.acme.scope.uuid()).fresh()
    }
}

#[tokio::test]
async fn a_train_that_was_just_made_lends_at_once() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 1).await;
        let other = crate::runs::tests::house(&fixture, "other", &[]).await;
        house.settled().await;
        let new = make_train(&house.acme, "new").await.unwrap().id;
        assert!(house.kept().is_some(), "what was read is not for nothing");
        assert!(
            house
                .acme
                .trains()
                .credential_pool(new)
                .await
                .unwrap()
                .is_some()
        );
        assert!(other.trains().credential_pool(new).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn what_is_lent_is_the_credential_in_its_header() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 2).await;
        let now = fixture.store.now();
        let account = house
            .by()
            .await
            .choose(&AccountCriteria::default(), now)
            .unwrap();
        assert_eq!(account.id, house.accounts[0]);
        assert_eq!(account.value.expose_secret(), "Bearer sk-0123456789-0000");
        assert!(!format!("{account:?}").contains("0123456789"));
        let exclude = [house.accounts[0]];
        let other = house.choose(AccountCriteria {
            exclude: &exclude,
            ..AccountCriteria::default()
        });
        assert_eq!(other.await.unwrap(), house.accounts[1]);
        // Another publisher's train has the same slug.
        let other = crate::runs::tests::house(&fixture, "other", &[]).await;
        assert!(
            other
                .trains()
                .credential_pool(house.train.id)
                .await
                .unwrap()
                .is_none()
        );
    }
}

#[tokio::test]
async fn a_snapshot_is_read_once_and_dies_with_any_change() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 2).await;
        assert!(house.kept().is_none());
        let first = house.settled().await;
        assert_eq!(house.chosen().await, Some(0));
        assert!(Arc::ptr_eq(&first, &house.kept().unwrap()));
        lend(&house.acme, "chat", &[(house.accounts[1], 0)])
            .await
            .unwrap();
        assert!(house.kept().is_none(), "before the call returned");
        assert_eq!(house.chosen().await, Some(1));
        // If the last poll was too long ago, each request reads for itself.
        house.settled().await;
        fixture.store.inner.stop.cancel();
        tokio::time::sleep(Duration::from_millis(100)).await;
        fixture.store.inner.freshness.distrust();
        let before = house.kept().unwrap();
        assert_eq!(house.chosen().await, Some(1));
        assert!(!Arc::ptr_eq(&before, &house.kept().unwrap()));
    }
}

#[tokio::test]
async fn what_was_read_before_a_change_is_not_kept_after_it() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 1).await;
        let store = &house.acme.store;
        let tenant = store.state::<PoolCache>().tenant(house.acme.scope.uuid());
        let reading = store.inner.freshness.begin();
        let (old, _) = store
            .read_snapshot(&house.acme.scope, &tenant)
            .await
            .unwrap();
        lend(&house.acme, "chat", &[]).await.unwrap();
        let mut kept = false;
        reading.keep(house.acme.scope.uuid(), |_| kept = true);
        assert!(!kept && !old.trains.is_empty());
        assert_eq!(house.chosen().await, None);
    }
}

#[tokio::test]
async fn many_who_ask_at_once_are_served_by_one_reading() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 1).await;
        let tenant = fixture
            .store
            .state::<PoolCache>()
            .tenant(house.acme.scope.uuid());
        let asked: Vec<_> = (0..50)
            .map(|_| {
                let (acme, train) = (house.acme.clone(), house.train.id);
                tokio::spawn(async move {
                    acme.trains()
                        .credential_pool(train)
                        .await
                        .unwrap()
                        .is_some()
                })
            })
            .collect();
        for one in asked {
            assert!(one.await.unwrap());
        }
        let begun = tenant.begun.load(Ordering::SeqCst);
        assert!(begun <= 3, "{begun} readings");
    }
}

#[tokio::test]
async fn a_report_lets_an_account_rest_until_it_may_go_on() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 2).await;
        house.says(0, UseOutcome::RateLimited).await;
        assert_eq!(house.chosen().await, Some(1));
        // A shorter cooldown does not shorten a longer one, and a success ends it.
        house.says(0, UseOutcome::Failed).await;
        fixture.clock.advance(Duration::from_secs(31));
        assert_eq!(house.chosen().await, Some(1));
        fixture.clock.advance(Duration::from_secs(30));
        assert_eq!(house.chosen().await, Some(0));
        house.says(0, UseOutcome::RateLimited).await;
        house.says(0, UseOutcome::Ok).await;
        assert_eq!(house.chosen().await, Some(0));
        assert_eq!(fixture.count("account_cooldowns").await, 1);
        // Reports outlive the snapshot.
        house.says(1, UseOutcome::Unauthorized).await;
        house.says(0, UseOutcome::Unauthorized).await;
        fixture.store.state::<PoolCache>().tenants.invalidate_all();
        let out = house.choose(AccountCriteria::default()).await.unwrap_err();
        assert!(out.is_whole());
        assert_eq!(
            out.available_at(),
            Some(fixture.store.now().plus(5 * MINUTE))
        );
    }
}

#[tokio::test]
async fn an_account_rests_for_one_model_alone() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 2).await;
        let mut report = house.report_of(0, UseOutcome::RateLimited);
        report.model = Some("large".into());
        report.retry_after = Some(10 * MINUTE);
        house.report(report).await;
        assert_eq!(house.chosen_for("large").await, Some(1));
        assert_eq!(house.chosen_for("small").await, Some(0));
        assert_eq!(house.chosen().await, Some(0));
        house.says(0, UseOutcome::Failed).await;
        assert_eq!(house.chosen_for("small").await, Some(1));
        let mut report = house.report_of(0, UseOutcome::Ok);
        report.model = Some("large".into());
        house.report(report).await;
        assert_eq!(house.chosen_for("large").await, Some(0));
        assert_eq!(house.chosen().await, Some(0));
    }
}

#[tokio::test]
async fn made_up_models_fill_nothing() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 1).await;
        for number in 0..130 {
            let mut report = house.report_of(0, UseOutcome::Failed);
            report.model = Some(format!("model-{number}"));
            house.report(report).await;
        }
        assert_eq!(fixture.count("account_cooldowns").await, 101);
        assert_eq!(house.chosen().await, None, "it rests as a whole");
        fixture.clock.advance(2 * MINUTE);
        let mut report = house.report_of(0, UseOutcome::Failed);
        report.model = Some("one more".into());
        house.report(report).await;
        assert_eq!(fixture.count("account_cooldowns").await, 1);
    }
}

#[tokio::test]
async fn only_an_account_of_the_train_is_reported_of() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 1).await;
        let stranger = make_account(&house.acme, new_account("spare"))
            .await
            .unwrap();
        let report = AccountReport {
            account: stranger.id,
            ..house.report_of(0, UseOutcome::Failed)
        };
        let refused = house
            .acme
            .trains()
            .report(house.train.id, house.reporter(), &report)
            .await;
        assert_eq!(code(refused), domain::Code::NotFound);
        assert_eq!(fixture.count("account_cooldowns").await, 0);
    }
}

#[tokio::test]
async fn another_process_hears_of_a_report() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 2).await;
        if fixture.store.inner.db.notifies().is_none() {
            continue;
        }
        assert_eq!(house.chosen().await, Some(0));
        let account = house.accounts[0].uuid();
        let row = |until: i64, reported_at: i64| {
            format!(
                "INSERT INTO account_cooldowns \
                 (publisher_id, account_id, model, until, reason, reported_at) \
                 VALUES ('{}', '{account}', '', {until}, 'rate_limited', {reported_at}) \
                 ON CONFLICT (publisher_id, account_id, model) \
                 DO UPDATE SET until = excluded.until, reported_at = excluded.reported_at",
                house.acme.scope.uuid()
            )
        };
        let now = fixture.store.now().ms();
        fixture.execute(&row(now + 60_000, now)).await;
        fixture
            .store
            .state::<PoolCache>()
            .tenants
            .run_pending_tasks();
        fixture.store.poll_cooldowns().await.unwrap();
        assert_eq!(house.chosen().await, Some(1));
        // The account works again.
        fixture.execute(&row(now, now + 1)).await;
        fixture.store.poll_cooldowns().await.unwrap();
        assert_eq!(house.chosen().await, Some(0));
    }
}

#[tokio::test]
async fn an_account_near_its_ceiling_comes_last() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 2).await;
        let table = r#"UPDATE accounts SET ceilings = '{"requests_5h":10}' WHERE name = 'a0'"#;
        fixture.execute(table).await;
        let mut report = house.report_of(0, UseOutcome::Ok);
        report.requests = 8;
        report.tokens = 5;
        house.report(report.clone()).await;
        assert_eq!(house.chosen().await, Some(0));
        report.requests = 1;
        house.report(report).await;
        assert_eq!(house.chosen().await, Some(1));
        // The same after it was written and read again.
        assert_eq!(fixture.store.flush_usage().await.unwrap(), 1);
        assert_eq!(fixture.store.flush_usage().await.unwrap(), 0);
        let written = "account_usage WHERE requests = 9 AND tokens = 10";
        assert_eq!(fixture.count(written).await, 1);
        fixture.store.state::<PoolCache>().tenants.invalidate_all();
        assert_eq!(house.chosen().await, Some(1));
        fixture.clock.advance(Duration::from_hours(6));
        fixture.store.state::<PoolCache>().tenants.invalidate_all();
        assert_eq!(house.chosen().await, Some(0));
        // Usage of an account that was removed meanwhile is dropped.
        house.report(house.report_of(1, UseOutcome::Ok)).await;
        let mut report = house.report_of(1, UseOutcome::Ok);
        report.requests = 1;
        house.report(report).await;
        fixture
            .execute("DELETE FROM accounts WHERE name = 'a1'")
            .await;
        fixture.store.flush_usage().await.unwrap();
        assert_eq!(fixture.count("account_usage").await, 1);
    }
}

#[tokio::test]
async fn a_credential_that_does_not_open_holds_up_no_other() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 2).await;
        let other = "UPDATE accounts SET sealed = \
             (SELECT o.sealed FROM accounts o WHERE o.name = 'a1') WHERE name = 'a0'";
        fixture.execute(other).await;
        assert_eq!(house.chosen().await, Some(1));
    }
}

#[tokio::test]
async fn that_a_train_is_exhausted_is_told_once_in_five_minutes() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 0).await;
        let (train, now) = (house.train.id, fixture.store.now());
        let by = house.by().await;
        assert!(by.claim_exhausted_notice(now) && !by.claim_exhausted_notice(now));
        let trains = house.acme.trains();
        let tell = || trains.tell_exhausted(train, "chat", Some(now));
        assert!(tell().await.unwrap());
        assert!(!tell().await.unwrap());
        let told = "events WHERE event_type = 'stationmaster.train.exhausted'";
        assert_eq!(fixture.count(told).await, 1);
        fixture.clock.advance(5 * MINUTE);
        assert!(tell().await.unwrap());
        assert_eq!(fixture.count(told).await, 2);
    }
}

/// Rows as an import writes them.
async fn import(fixture: &Fixture, house: &House, text: &str) {
    use crate::store::entity::{train_token_hashes, train_tokens};
    use sea_orm::ActiveValue::Set;
    let id = domain::id::TokenId::generate(fixture.store.now()).uuid();
    let publisher = house.acme.scope.uuid();
    fixture
        .insert(train_tokens::ActiveModel {
            publisher_id: Set(publisher),
            id: Set(id),
            train_id: Set(house.train.id.uuid()),
            name: Set(None),
            last_four: Set(last_four(text)),
            source: Set("import".into()),
            created_at: Set(fixture.store.now().ms()),
            expires_at: Set(None),
            revoked_at: Set(None),
            last_used_at: Set(None),
            minted_by: Set(None),
        })
        .await;
    fixture
        .insert(train_token_hashes::ActiveModel {
            hash: Set(TokenHash::of(text).as_bytes().to_vec()),
            publisher_id: Set(publisher),
            token_id: Set(id),
        })
        .await;
}

/// Waits until the store has polled all changes so far: a poll during a look-up keeps the token
/// from being cached.
async fn heard_of_all_changes(fixture: &Fixture) {
    let heard = || fixture.store.inner.freshness.epoch();
    while fixture
        .count(&format!("cache_epoch WHERE epoch = {}", heard()))
        .await
        == 0
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_trains_token_is_known_as_such_and_revoked_at_once() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 1).await;
        let minted = house.token(NewTrainToken::default()).await;
        let hash = TokenHash::of_secret(&minted.text);
        let store = &fixture.store;
        heard_of_all_changes(&fixture).await;
        let who = store.authenticate(hash).await.unwrap().unwrap();
        assert_eq!(who.train(), Some(house.train.id));
        assert!(who.grants().is_empty());
        assert_eq!(who.actor().kind, domain::audit::ActorKind::Train);
        assert!(matches!(
            store.cached_token(hash),
            crate::CachedToken::Live(_)
        ));
        assert_eq!(store.flush_uses().await.unwrap(), 1);
        let used = "train_tokens WHERE last_used_at IS NOT NULL";
        assert_eq!(fixture.count(used).await, 1);
        let (acme, id) = (&house.acme, minted.token.id);
        let (context, chat) = (context(), slug("chat"));
        let trains = acme.trains();
        let revoke = || trains.revoke_train_token(&context, &chat, id, |()| no_content());
        revoke().await.unwrap();
        assert!(!matches!(
            store.cached_token(hash),
            crate::CachedToken::Live(_)
        ));
        assert!(store.authenticate(hash).await.unwrap().is_none());
        assert_eq!(code(revoke().await), domain::Code::NotFound);
        let brief = house
            .token(NewTrainToken {
                name: None,
                expires_at: Some(store.now().plus(MINUTE)),
            })
            .await;
        let brief = TokenHash::of_secret(&brief.text);
        assert!(store.authenticate(brief).await.unwrap().is_some());
        fixture.clock.advance(MINUTE);
        assert!(store.authenticate(brief).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn keys_of_any_form_count_while_there_are_imported_ones() {
    for fixture in engines().await {
        let house = with_accounts(&fixture, 1).await;
        let store = &fixture.store;
        assert!(!store.knows_imported_tokens());
        // All changes so far are polled before, not during the look-up.
        store.poll_credential_changes().await.unwrap();
        import(&fixture, &house, "short").await;
        store.look_for_foreign_tokens(Some(&[])).await.unwrap();
        assert!(!store.knows_imported_tokens(), "nobody told of a change");
        let owner = house.acme.scope.uuid();
        store.look_for_foreign_tokens(Some(&[owner])).await.unwrap();
        assert!(store.knows_imported_tokens() && !store.knows_foreign_tokens());
        let who = store.authenticate(TokenHash::of("short")).await.unwrap();
        assert_eq!(who.unwrap().train(), Some(house.train.id));
        fixture
            .execute("UPDATE train_tokens SET revoked_at = 1")
            .await;
        store.look_for_foreign_tokens(Some(&[])).await.unwrap();
        assert!(!store.knows_imported_tokens());
    }
}
