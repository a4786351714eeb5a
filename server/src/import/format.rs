//! From files to wishes: each file is an object with one list, each item judged by the rules of the
//! API. All faults are found before anything is wished for.

use std::collections::HashSet;

use api::operations::import::{Judge, parse};
use domain::{FaultCode, FieldError};
use persistence::{AccountWish, ClientKeyWish, TrainWish};
use serde_json::Value;

use super::{
    fault::Fault,
    files::{ACCOUNTS, Source, Sources, TRAINS},
    secrets::{Environment, Wiped, fill_in},
};

/// Most items of a file.
const ITEMS_MAX: usize = 10_000;

/// Where credentials may stand in an account.
const ACCOUNT_SECRETS: [&str; 4] = [
    "/api_key",
    "/oauth/access_token",
    "/oauth/refresh_token",
    "/oauth/client_secret",
];
/// The same in a train.
const TRAIN_SECRETS: [&str; 1] = ["/slack/webhook_url"];
/// The same in a client's key.
const KEY_SECRETS: [&str; 1] = ["/key"];

/// What is to be imported, each with the name that the report gives it.
#[derive(Default)]
pub struct Plan {
    /// Upstream credentials.
    pub accounts: Vec<(String, AccountWish)>,
    /// Trains with what they lend.
    pub trains: Vec<(String, TrainWish)>,
    /// Keys that trains' clients have already.
    pub client_keys: Vec<(String, ClientKeyWish)>,
}

impl Plan {
    /// Reads what the files say.
    ///
    /// # Errors
    /// All faults of all files.
    pub fn of(
        sources: Sources,
        judge: &Judge,
        environment: Environment<'_>,
    ) -> Result<Self, Vec<Fault>> {
        let (mut plan, mut faults) = (Self::default(), Vec::new());
        for source in sources.files {
            let found = match source.name {
                ACCOUNTS => plan.read_accounts(&source, judge, environment),
                TRAINS => plan.read_trains(&source, judge, environment),
                _ => plan.read_client_keys(&source, judge, environment),
            };
            faults.extend(found);
        }
        if faults.is_empty() {
            Ok(plan)
        } else {
            Err(faults)
        }
    }

    fn read_accounts(
        &mut self,
        source: &Source,
        judge: &Judge,
        environment: Environment<'_>,
    ) -> Vec<Fault> {
        let mut seen = HashSet::new();
        read(source, "accounts", |_, item| {
            let unknown = fill_in(item, &ACCOUNT_SECRETS, environment);
            let wish = with(unknown, judge.account(item))?;
            let name = wish.new.name.clone();
            once(&mut seen, name.clone(), "/name", "The name stands twice.")?;
            self.accounts.push((name, wish));
            Ok(())
        })
    }

    fn read_trains(
        &mut self,
        source: &Source,
        judge: &Judge,
        environment: Environment<'_>,
    ) -> Vec<Fault> {
        let mut seen = HashSet::new();
        read(source, "trains", |_, item| {
            let unknown = fill_in(item, &TRAIN_SECRETS, environment);
            let wish = with(unknown, judge.train(item))?;
            let slug = wish.slug.to_string();
            once(&mut seen, slug.clone(), "/slug", "The slug stands twice.")?;
            self.trains.push((slug, wish));
            Ok(())
        })
    }

    fn read_client_keys(
        &mut self,
        source: &Source,
        judge: &Judge,
        environment: Environment<'_>,
    ) -> Vec<Fault> {
        let mut seen = HashSet::new();
        read(source, "client_keys", |pointer, item| {
            let unknown = fill_in(item, &KEY_SECRETS, environment);
            let wish = with(unknown, judge.client_key(item))?;
            once(&mut seen, wish.hash, "", "The same key stands twice.")?;
            let of_train = wish.name.as_deref().unwrap_or(pointer);
            self.client_keys
                .push((format!("{} {of_train}", wish.train), wish));
            Ok(())
        })
    }
}

type Read<T> = Result<T, Vec<FieldError>>;

/// Refuses what stands twice in a file.
fn once<T: Eq + std::hash::Hash>(
    seen: &mut HashSet<T>,
    what: T,
    pointer: &str,
    detail: &str,
) -> Read<()> {
    if seen.insert(what) {
        return Ok(());
    }
    Err(vec![FieldError::new(pointer, FaultCode::Duplicate, detail)])
}

/// The faults of credentials that are named and not there stand for all others in their place.
fn with<T>(unknown: Vec<(&'static str, &'static str)>, judged: Read<T>) -> Read<T> {
    if unknown.is_empty() {
        return judged;
    }
    let mut faults = judged.err().unwrap_or_default();
    faults.retain(|fault| !unknown.iter().any(|(place, _)| fault.pointer == *place));
    let unknown = unknown
        .into_iter()
        .map(|(pointer, detail)| FieldError::new(pointer, FaultCode::Invalid, detail));
    faults.extend(unknown);
    Err(faults)
}

/// Gives each item of a file's one list to `take`, with its pointer; answers all faults.
fn read(
    source: &Source,
    list: &'static str,
    mut take: impl FnMut(&str, &mut Value) -> Read<()>,
) -> Vec<Fault> {
    let file = source.name;
    let mut content = match parse(&source.bytes) {
        Ok(value) => Wiped::new(value),
        Err(problem) => return vec![Fault::of_file(file, problem.detail)],
    };
    let items = match items_of(content.get(), list) {
        Ok(items) => items,
        Err(what) => return vec![Fault::of_file(file, what)],
    };
    let mut faults = Vec::new();
    for (at, item) in items.iter_mut().enumerate() {
        let pointer = format!("/{list}/{at}");
        let found = take(&pointer, item).err().unwrap_or_default();
        let found = found.into_iter();
        faults.extend(found.map(|fault| {
            let pointer = format!("{pointer}{}", fault.pointer);
            Fault::at(file, pointer, fault.detail)
        }));
    }
    faults
}

/// The one list of a file. Names of other members are not repeated: they may be credentials.
fn items_of<'a>(content: &'a mut Value, list: &str) -> Result<&'a mut Vec<Value>, String> {
    let form =
        format!("must be an object with the list `{list}`, {{\"{list}\": […]}}, and nothing else");
    let members = content.as_object_mut().ok_or_else(|| form.clone())?;
    if members.len() != 1 {
        return Err(form);
    }
    let items = members.get_mut(list).and_then(Value::as_array_mut);
    let items = items.ok_or(form)?;
    if items.len() > ITEMS_MAX {
        return Err(format!(
            "has more than {ITEMS_MAX} items; split it, and import the parts in turn"
        ));
    }
    Ok(items)
}

#[cfg(test)]
mod tests;
