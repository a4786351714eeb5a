//! Ending an account's cooldowns by an admin.

use domain::{
    audit::Action,
    id::{AccountId, Id as _},
};
use serde_json::json;

use super::{
    accounts::{Account, row_of},
    lending::{
        reports::{Ending, end_cooldowns},
        shown::{AccountCooldown, cooldowns_of},
    },
};
use crate::{
    store::{
        Scoped,
        change::{Answer, Audited, Context, audit_entry},
        db::Tx,
        error::StoreError,
    },
    trains::Trains,
};

impl Trains<Scoped> {
    /// Ends all of an account's cooldowns, or that for one model. If there is none, nothing
    /// changes. Other processes learn of it like of reports.
    pub async fn end_cooldown<A>(
        &self,
        context: &Context,
        id: AccountId,
        model: Option<&str>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Account) -> Answer + Send + Sync,
    {
        let owner = self.scope.uuid();
        let work = |tx: Tx| async move {
            let row = row_of(&tx, owner, id).await?;
            let mut account = Account::of_row(row)?;
            let held = cooldowns_of(tx.db(), owner, id.uuid(), tx.now).await?;
            let is_meant = |one: &AccountCooldown| model.is_none() || one.model.as_deref() == model;
            let (ended, left): (Vec<_>, Vec<_>) = held.into_iter().partition(is_meant);
            account.cooldowns = left;
            let Some(until) = ended.iter().map(|one| one.until).max() else {
                return Ok(Audited::unchanged(account));
            };
            let ending = model.map_or(Ending::Everything, Ending::Model);
            end_cooldowns(&tx, owner, id.uuid(), ending).await?;
            let facts = json!({
                "model": model,
                "ended": ended.len(),
                "until": until.to_string(),
            });
            let entry = audit_entry(Action::AccountCooldownEnded, "account", id, facts);
            Ok(Audited::new(account, owner, entry))
        };
        let answer = self.store.administer(context, owner, work, render).await?;
        // Also for a repeated request: the process that handled the first one may have died before
        // it read the rows.
        self.store.reload_cooldowns(owner, id.uuid()).await?;
        Ok(answer)
    }
}
