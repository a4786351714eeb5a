//! The accounts of an import.

use domain::{
    Timestamp,
    account::{Credential, CredentialType, OauthTokens},
    id::{AccountId, Id as _, PublisherId},
    seal::Key,
};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _, sea_query::Expr,
};

use super::{AccountSpec, Import, ImportOutcome, ImportResult, refusal_as_result};
use crate::{
    store::{
        change::Audited,
        db::Tx,
        entity::accounts,
        error::{Result, StoreError, corrupt_row},
        quota::over_quota,
    },
    trains::accounts::{
        Account, AccountPatch, NewAccount, create_within, replace_within, sealed_for, update_within,
    },
};

/// From this number on, a credential was obtained by the service itself.
const REFRESHED: i64 = 2;

/// What to do with an account.
enum Step {
    Create,
    Update(Box<accounts::Model>, AccountPatch),
    /// The last field: whether the new account gets tokens that the service obtained for the old
    /// one.
    Replace(AccountId, Box<NewAccount>, bool),
    Nothing(ImportResult),
}

impl Step {
    fn done(&self) -> ImportResult {
        match self {
            Self::Create => ImportResult::of(ImportOutcome::Created),
            Self::Update(..) => ImportResult::of(ImportOutcome::Updated),
            Self::Replace(..) => ImportResult::of(ImportOutcome::Replaced),
            Self::Nothing(done) => done.clone(),
        }
    }
}

impl Import {
    /// Brings an account to the state that `spec` describes. The name identifies it.
    ///
    /// # Errors
    /// Those of the store. A refusal is a result.
    pub async fn account(&mut self, spec: &AccountSpec) -> Result<ImportResult, StoreError> {
        refusal_as_result(self.bring_account(spec).await)
    }

    async fn bring_account(&mut self, spec: &AccountSpec) -> Result<ImportResult> {
        let step = self.account_step(self.scoped.store.read(), spec).await?;
        if matches!(step, Step::Nothing(_)) {
            return Ok(step.done());
        }
        if self.pretended.is_some() {
            if matches!(step, Step::Create) {
                self.pretend_account(&spec.new.name).await?;
            }
            return Ok(step.done());
        }
        let this = &*self;
        let work = |tx: Tx| async move {
            let step = this.account_step(tx.db(), spec).await?;
            let done = step.done();
            let (store, publisher) = (&this.scoped.store, this.publisher());
            let changed: Audited<Account> = match step {
                Step::Create => create_within(store, &tx, publisher, &spec.new).await?,
                Step::Update(row, patch) => update_within(&tx, *row, &patch).await?,
                Step::Replace(old, new, refreshed) => {
                    let made = replace_within(store, &tx, publisher, old, &new).await?;
                    if refreshed {
                        note_refreshed(&tx, publisher, made.value()).await?;
                    }
                    made
                }
                Step::Nothing(done) => return Ok(Audited::unchanged(done)),
            };
            Ok(changed.with(done))
        };
        this.commit(work).await
    }

    async fn pretend_account(&mut self, name: &str) -> Result<()> {
        let usage = self.scoped.usage().await?;
        let Some(pretended) = &mut self.pretended else {
            return Ok(());
        };
        let ahead = u64::try_from(pretended.accounts.len()).unwrap_or(u64::MAX);
        if usage.accounts.saturating_add(ahead) >= u64::from(usage.quotas.accounts) {
            return Err(over_quota("accounts", usage.quotas.accounts));
        }
        pretended.accounts.insert(name.to_owned());
        Ok(())
    }

    async fn account_step<C: ConnectionTrait>(&self, db: &C, spec: &AccountSpec) -> Result<Step> {
        let row = crate::trains::accounts::of(self.owner())
            .filter(accounts::Column::Name.eq(&spec.new.name))
            .one(db)
            .await?;
        let Some(row) = row else {
            return Ok(Step::Create);
        };
        let key = self
            .scoped
            .store
            .inner
            .keys
            .of(db, self.owner())
            .await?
            .data;
        compare(row, &key, spec)
    }
}

/// Notes that an account has other tokens than the file, so that the next import knows.
async fn note_refreshed(tx: &Tx, publisher: PublisherId, account: &Account) -> Result<()> {
    use accounts::Column;
    accounts::Entity::update_many()
        .col_expr(Column::CredentialVersion, Expr::value(REFRESHED))
        .filter(Column::PublisherId.eq(publisher.uuid()))
        .filter(Column::Id.eq(account.id.uuid()))
        .exec(tx.db())
        .await?;
    Ok(())
}

/// The account that the file describes, and whether it keeps tokens that the service obtained.
/// After a refresh the file's tokens are used up, and going back to them would break the account.
/// An account whose refresh failed cannot become worse.
fn wanted(
    row: &accounts::Model,
    there: &Account,
    held: Credential,
    spec: &AccountSpec,
) -> (NewAccount, bool) {
    let mut new = NewAccount {
        enabled: spec.enabled.unwrap_or(there.enabled),
        ceilings: spec.ceilings.unwrap_or(there.ceilings),
        ..spec.new.clone()
    };
    let refreshed = row.credential_version >= REFRESHED && row.health == "ok";
    let keeps = match (&there.oauth, &new.oauth) {
        (Some(old), Some((client, _))) => {
            refreshed && old.token_url == client.token_url && old.client_id == client.client_id
        }
        _ => false,
    };
    if let (true, Credential::Oauth(own), Credential::Oauth(given)) = (keeps, held, &new.credential)
    {
        new.credential = Credential::Oauth(OauthTokens {
            client_secret: given.client_secret.clone(),
            ..own
        });
        let expires_at = there.expires_at;
        new.oauth = new
            .oauth
            .map(|(client, given)| (client, expires_at.unwrap_or(given)));
        return (new, true);
    }
    (new, false)
}

/// Whether everything is as described that cannot be changed without replacing the account.
fn is_the_same(there: &Account, held: &Credential, new: &NewAccount) -> bool {
    let oauth: Option<(_, Timestamp)> = there.oauth.clone().zip(there.expires_at);
    there.provider == new.provider
        && there.base_url == new.base_url
        && there.header == new.header
        && (there.credential_type == CredentialType::ApiKey || oauth == new.oauth)
        && held.is(&new.credential)
}

/// The step that brings an existing account to the described state.
fn compare(row: accounts::Model, key: &Key, spec: &AccountSpec) -> Result<Step> {
    let id = AccountId::from_uuid(row.id);
    let held = Credential::open(key, &sealed_for(&row), &row.sealed)
        .map_err(|_| corrupt_row("account's credential"))?;
    let there = Account::of_row(row.clone())?;
    let (new, refreshed) = wanted(&row, &there, held.clone(), spec);
    if !is_the_same(&there, &held, &new) {
        return Ok(Step::Replace(id, Box::new(new), refreshed));
    }
    let patch = AccountPatch {
        name: None,
        enabled: spec.enabled.filter(|wanted| *wanted != there.enabled),
        ceilings: spec.ceilings.filter(|wanted| *wanted != there.ceilings),
    };
    if patch != AccountPatch::default() {
        return Ok(Step::Update(Box::new(row), patch));
    }
    Ok(Step::Nothing(if refreshed {
        ImportResult::unchanged("Its tokens were refreshed since; those are kept.")
    } else {
        ImportResult::of(ImportOutcome::Unchanged)
    }))
}
