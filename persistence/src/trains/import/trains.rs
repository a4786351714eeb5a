//! The trains of an import, with their accounts.

use std::collections::HashMap;

use domain::{
    id::{AccountId, Id as _, TrainId},
    token::TokenHash,
    train::open_webhook,
};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _, QuerySelect as _,
};
use uuid::Uuid;

use super::{Import, ImportOutcome, ImportResult, TrainSpec, refusal_as_result, refuse};
use crate::{
    store::{
        change::Audited,
        db::Tx,
        entity::{accounts, train_accounts, trains},
        error::{Result, StoreError, corrupt_row},
        quota::over_quota,
    },
    trains::train::{NewSlack, NewTrain, SlackPatch, TrainPatch, create_within, update_within},
};

/// The accounts of a train, with their priorities.
type AccountPriorities = Vec<(AccountId, u16)>;

/// What to do with a train.
enum Step {
    Create(Option<AccountPriorities>),
    Update(
        Box<trains::Model>,
        Box<TrainPatch>,
        Option<AccountPriorities>,
    ),
    Nothing,
}

impl Step {
    const fn outcome(&self) -> ImportOutcome {
        match self {
            Self::Create(_) => ImportOutcome::Created,
            Self::Update(..) => ImportOutcome::Updated,
            Self::Nothing => ImportOutcome::Unchanged,
        }
    }
}

impl TrainSpec {
    fn new_train(&self) -> NewTrain {
        NewTrain {
            slug: self.slug.clone(),
            description: self.description.clone().flatten(),
            enabled: self.enabled.unwrap_or(true),
            sticky: self.sticky.unwrap_or(false),
            slack: self.slack.clone().flatten(),
        }
    }
}

impl Import {
    /// Brings a train to the state that `spec` describes. The slug identifies it.
    ///
    /// # Errors
    /// Those of the store. A refusal is a result.
    pub async fn train(&mut self, spec: &TrainSpec) -> Result<ImportResult, StoreError> {
        refusal_as_result(self.bring_train(spec).await)
    }

    async fn bring_train(&mut self, spec: &TrainSpec) -> Result<ImportResult> {
        let step = self.train_step(self.scoped.store.read(), spec).await?;
        let done = ImportResult::of(step.outcome());
        if matches!(step, Step::Nothing) {
            return Ok(done);
        }
        if self.pretended.is_some() {
            if matches!(step, Step::Create(_)) {
                self.pretend_train(spec.slug.as_str()).await?;
            }
            return Ok(done);
        }
        let this = &*self;
        let work = |tx: Tx| async move {
            let step = this.train_step(tx.db(), spec).await?;
            let done = ImportResult::of(step.outcome());
            let (store, publisher) = (&this.scoped.store, this.publisher());
            let changed = match step {
                Step::Create(accounts) => {
                    let new = spec.new_train();
                    let accounts = accounts.unwrap_or_default();
                    create_within(store, &tx, publisher, &new, &accounts).await?
                }
                Step::Update(row, patch, accounts) => {
                    update_within(store, &tx, *row, &patch, accounts.as_deref()).await?
                }
                Step::Nothing => return Ok(Audited::unchanged(done)),
            };
            Ok(changed.with(done))
        };
        this.commit(work).await
    }

    async fn pretend_train(&mut self, slug: &str) -> Result<()> {
        let usage = self.scoped.usage().await?;
        let Some(pretended) = &mut self.pretended else {
            return Ok(());
        };
        let ahead = u64::try_from(pretended.trains.len()).unwrap_or(u64::MAX);
        if usage.trains.saturating_add(ahead) >= u64::from(usage.quotas.trains) {
            return Err(over_quota("trains", usage.quotas.trains));
        }
        pretended.trains.insert(slug.to_owned());
        Ok(())
    }

    async fn train_step<C: ConnectionTrait>(&self, db: &C, spec: &TrainSpec) -> Result<Step> {
        let accounts = match &spec.accounts {
            Some(accounts) => Some(self.account_priorities(db, accounts).await?),
            None => None,
        };
        let row = crate::trains::train::of(self.owner())
            .filter(trains::Column::Slug.eq(spec.slug.as_str()))
            .one(db)
            .await?;
        let Some(row) = row else {
            return Ok(Step::Create(accounts));
        };
        let accounts = match accounts {
            Some(accounts) => self.changed_accounts(db, row.id, accounts).await?,
            None => None,
        };
        let patch = TrainPatch {
            description: spec
                .description
                .clone()
                .filter(|wanted| *wanted != row.description),
            enabled: spec.enabled.filter(|wanted| *wanted != row.enabled),
            sticky: spec.sticky.filter(|wanted| *wanted != row.sticky),
            slack: self.other_slack(db, &row, spec.slack.as_ref()).await?,
        };
        let settled = patch.description.is_none()
            && patch.enabled.is_none()
            && patch.sticky.is_none()
            && patch.slack.is_none();
        Ok(if settled && accounts.is_none() {
            Step::Nothing
        } else {
            Step::Update(Box::new(row), Box::new(patch), accounts)
        })
    }

    /// The accounts with these names. An account that a dry run would have created has no
    /// identifier yet; any identifier stands for it, since nothing is written.
    async fn account_priorities<C: ConnectionTrait>(
        &self,
        db: &C,
        spec: &[(String, u16)],
    ) -> Result<AccountPriorities> {
        let names = spec.iter().map(|(name, _)| name.as_str());
        let known: HashMap<String, Uuid> = crate::trains::accounts::of(self.owner())
            .filter(accounts::Column::Name.is_in(names))
            .select_only()
            .columns([accounts::Column::Name, accounts::Column::Id])
            .into_tuple::<(String, Uuid)>()
            .all(db)
            .await?
            .into_iter()
            .collect();
        let pretended = |name: &str| {
            let pretended = self.pretended.as_ref()?;
            pretended
                .accounts
                .contains(name)
                .then(|| AccountId::generate(self.scoped.store.now()))
        };
        let mut accounts = AccountPriorities::with_capacity(spec.len());
        let mut missing = Vec::new();
        for (name, priority) in spec {
            let known = known.get(name).copied().map(AccountId::from_uuid);
            match known.or_else(|| pretended(name)) {
                Some(account) => accounts.push((account, *priority)),
                None => missing.push(format!("{name:?}")),
            }
        }
        if missing.is_empty() {
            return Ok(accounts);
        }
        Err(refuse(format!(
            "The publisher has no account {}.",
            missing.join(", ")
        )))
    }

    /// The described accounts, if the train has others.
    async fn changed_accounts<C: ConnectionTrait>(
        &self,
        db: &C,
        train: Uuid,
        mut spec: AccountPriorities,
    ) -> Result<Option<AccountPriorities>> {
        use train_accounts::Column;
        let there = train_accounts::Entity::find()
            .filter(Column::PublisherId.eq(self.owner()))
            .filter(Column::TrainId.eq(train))
            .all(db)
            .await?;
        let mut there: Vec<(Uuid, i32)> = there
            .into_iter()
            .map(|place| (place.account_id, place.priority))
            .collect();
        there.sort_unstable();
        spec.sort_unstable_by_key(|(account, _)| account.uuid());
        let same = spec
            .iter()
            .map(|(account, priority)| (account.uuid(), i32::from(*priority)))
            .eq(there);
        Ok((!same).then_some(spec))
    }

    /// The changes of the Slack channel, if there are any.
    async fn other_slack<C: ConnectionTrait>(
        &self,
        db: &C,
        row: &trains::Model,
        spec: Option<&Option<NewSlack>>,
    ) -> Result<Option<Option<SlackPatch>>> {
        let (spec, sealed) = match (spec, &row.slack_webhook) {
            (None, _) | (Some(None), None) => return Ok(None),
            (Some(None), Some(_)) => return Ok(Some(None)),
            (Some(Some(spec)), sealed) => (spec, sealed),
        };
        let mut same_url = false;
        if let Some(sealed) = sealed {
            let key = self
                .scoped
                .store
                .inner
                .keys
                .of(db, self.owner())
                .await?
                .data;
            let train = TrainId::from_uuid(row.id);
            let url = open_webhook(&key, self.publisher(), train, sealed)
                .map_err(|_| corrupt_row("train's webhook"))?;
            same_url = TokenHash::of_secret(&url).matches(&TokenHash::of_secret(&spec.webhook_url));
        }
        let events = crate::trains::train::events_column(&spec.events);
        let same = same_url
            && row.slack_channel == spec.channel
            && row.slack_events.as_ref() == Some(&events);
        Ok((!same).then(|| {
            Some(SlackPatch {
                webhook_url: (!same_url).then(|| spec.webhook_url.clone()),
                channel: Some(spec.channel.clone()),
                events: Some(spec.events.clone()),
            })
        }))
    }
}
