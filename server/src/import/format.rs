//! Turns files into a plan. Each file is an object with one list, and each item is checked by the
//! rules of the API. All errors are found before anything is imported.

use std::collections::HashSet;

use api::operations::import::{Judge, parse};
use domain::{FaultCode, FieldError};
use persistence::{AccountSpec, ClientKeySpec, TrainSpec};
use serde_json::Value;

use super::{
    fault::Fault,
    files::{ACCOUNTS, InputFile, InputFiles, TRAINS},
    secrets::{Environment, Wiped, fill_in},
};

/// Most items of a file.
const ITEMS_MAX: usize = 10_000;

/// The members of an account that may contain credentials.
const ACCOUNT_SECRETS: [&str; 4] = [
    "/api_key",
    "/oauth/access_token",
    "/oauth/refresh_token",
    "/oauth/client_secret",
];
/// The members of a train that may.
const TRAIN_SECRETS: [&str; 1] = ["/slack/webhook_url"];
/// The members of a client key that may.
const KEY_SECRETS: [&str; 1] = ["/key"];

/// The items to import, each with its name in the report.
#[derive(Default)]
pub struct Plan {
    /// Upstream credentials.
    pub accounts: Vec<(String, AccountSpec)>,
    /// Trains with the accounts that they lend.
    pub trains: Vec<(String, TrainSpec)>,
    /// Keys that clients of trains have already.
    pub client_keys: Vec<(String, ClientKeySpec)>,
}

impl Plan {
    /// Reads the files.
    ///
    /// # Errors
    /// All errors of all files.
    pub fn of(
        sources: InputFiles,
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
        source: &InputFile,
        judge: &Judge,
        environment: Environment<'_>,
    ) -> Vec<Fault> {
        let mut seen = HashSet::new();
        read(source, "accounts", |_, item| {
            let unknown = fill_in(item, &ACCOUNT_SECRETS, environment);
            let wish = with(unknown, judge.account(item))?;
            let name = wish.new.name.clone();
            once(
                &mut seen,
                name.clone(),
                "/name",
                "The file has this name twice.",
            )?;
            self.accounts.push((name, wish));
            Ok(())
        })
    }

    fn read_trains(
        &mut self,
        source: &InputFile,
        judge: &Judge,
        environment: Environment<'_>,
    ) -> Vec<Fault> {
        let mut seen = HashSet::new();
        read(source, "trains", |_, item| {
            let unknown = fill_in(item, &TRAIN_SECRETS, environment);
            let wish = with(unknown, judge.train(item))?;
            let slug = wish.slug.to_string();
            once(
                &mut seen,
                slug.clone(),
                "/slug",
                "The file has this slug twice.",
            )?;
            self.trains.push((slug, wish));
            Ok(())
        })
    }

    fn read_client_keys(
        &mut self,
        source: &InputFile,
        judge: &Judge,
        environment: Environment<'_>,
    ) -> Vec<Fault> {
        let mut seen = HashSet::new();
        read(source, "client_keys", |pointer, item| {
            let unknown = fill_in(item, &KEY_SECRETS, environment);
            let wish = with(unknown, judge.client_key(item))?;
            once(&mut seen, wish.hash, "", "The file has this key twice.")?;
            let of_train = wish.name.as_deref().unwrap_or(pointer);
            self.client_keys
                .push((format!("{} {of_train}", wish.train), wish));
            Ok(())
        })
    }
}

type Read<T> = Result<T, Vec<FieldError>>;

/// Refuses a value that a file contains twice.
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

/// Replaces the errors of a credential by the error that its variable does not exist.
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

/// Passes each item of a file's list to `take`, with its pointer; returns all errors.
fn read(
    source: &InputFile,
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

/// The list of a file. An error does not repeat names of other members: they may be credentials.
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
