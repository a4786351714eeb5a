//! The accounts' cooldowns that this process knows.

use std::collections::{BTreeMap, HashMap};

use domain::{Timestamp, lending::UseOutcome};
use sea_orm::QueryResult;
use uuid::Uuid;

use crate::store::{
    entity::account_cooldowns,
    error::{Result, corrupt_row},
    unreadable,
};

/// The model of a cooldown that concerns the account as a whole.
pub(super) const WHOLE: &str = "";
/// Most models of an account with cooldowns of their own. Beyond them the account as a whole cools
/// down, so that invented names cannot fill the table.
pub(super) const MODELS_MAX: usize = 100;
/// How long an ended cooldown is remembered, in milliseconds, so that reading older rows cannot
/// restore it.
pub(super) const REMEMBERED_MS: i64 = 60_000;
/// The part of a row that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cooldown {
    pub(super) until: i64,
    pub(super) reason: UseOutcome,
    pub(super) reported_at: i64,
}

impl Cooldown {
    fn of(until: i64, reason: &str, reported_at: i64) -> Result<Self> {
        Ok(Self {
            until,
            reason: UseOutcome::parse(reason).ok_or_else(|| corrupt_row("cooldown's reason"))?,
            reported_at,
        })
    }

    pub(super) fn of_row(row: &QueryResult) -> Result<Self> {
        let reason: String = row.try_get("", "reason")?;
        Self::of(
            row.try_get("", "until")?,
            &reason,
            row.try_get("", "reported_at")?,
        )
    }
}

/// If a row cannot be read, the others still take effect.
pub(super) fn readable(row: &account_cooldowns::Model) -> Option<Cooldown> {
    Cooldown::of(row.until, &row.reason, row.reported_at)
        .inspect_err(|error| {
            unreadable::report("cooldown", row.publisher_id, row.account_id, error);
        })
        .ok()
}

/// Cooldowns by account and model.
#[derive(Default)]
pub(super) struct Cooldowns(HashMap<Uuid, BTreeMap<Box<str>, Cooldown>>);

impl Cooldowns {
    pub(super) fn get(&self, account: Uuid, model: &str) -> Option<&Cooldown> {
        self.0.get(&account)?.get(model)
    }

    /// Takes in a row, unless a newer state of the same row is known.
    pub(super) fn apply(&mut self, account: Uuid, model: &str, newer: Cooldown) {
        let models = self.0.entry(account).or_default();
        match models.get_mut(model) {
            Some(known) if known.reported_at >= newer.reported_at => {}
            Some(known) => *known = newer,
            None => {
                models.insert(model.into(), newer);
            }
        }
    }

    /// When an account's cooldown ends, for a model if one is given. A refused credential causes no
    /// cooldown any more once it was renewed.
    pub(super) fn until(
        &self,
        account: Uuid,
        renewed: Option<Timestamp>,
        model: Option<&str>,
    ) -> Option<Timestamp> {
        let models = self.0.get(&account)?;
        let renewed_ms = renewed.map_or(0, Timestamp::ms);
        [Some(WHOLE), model]
            .into_iter()
            .flatten()
            .filter_map(|model| models.get(model))
            .filter(|one| one.reason != UseOutcome::Unauthorized || one.reported_at >= renewed_ms)
            .map(|one| Timestamp::from_ms(one.until))
            .max()
    }

    pub(super) fn forget_old(&mut self, now: Timestamp) {
        let oldest = now.ms() - REMEMBERED_MS;
        for models in self.0.values_mut() {
            models.retain(|_, one| one.until > oldest || one.reported_at > oldest);
        }
        self.0.retain(|_, models| !models.is_empty());
    }

    /// How many models of an account are known, including ended cooldowns.
    pub(super) fn models(&self, account: Uuid) -> usize {
        self.0.get(&account).map_or(0, BTreeMap::len)
    }

    /// The model under which an account's cooldown has to be written, and the cooldown that is
    /// known there.
    pub(super) fn model_to_write<'a>(
        &mut self,
        account: Uuid,
        model: &'a str,
        now: Timestamp,
    ) -> (&'a str, Option<Cooldown>) {
        if self.get(account, model).is_none() && self.models(account) >= MODELS_MAX {
            self.forget_old(now);
        }
        let known = self.get(account, model).copied();
        if known.is_none() && self.models(account) >= MODELS_MAX {
            return (WHOLE, self.get(account, WHOLE).copied());
        }
        (model, known)
    }
}
