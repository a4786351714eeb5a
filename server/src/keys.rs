//! `stationmaster keys`: shows which master key wraps whose data keys, adds master keys, and
//! rewraps data keys.
//!
//! Servers may run meanwhile, on either database engine, because these commands do not take the
//! lock of the data directory. Commands that change the key file or rewrap keys exclude each other
//! by a lock of their own. No key is ever written to the output.

use std::{fs::File, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use domain::{
    clock::{Clock as _, SystemClock},
    seal::MasterKeys,
};
use persistence::{KeysSurvey, RewrapCursor, Rewrapped, Store, StoreError, System};
use secrecy::ExposeSecret as _;

use crate::{
    config::{Config, Loaded, SettingSource},
    data_dir::{Credentials, Database, Survey},
    failure::Failure,
    key_file::{self, KeyFile},
    operate,
    progress::Progress,
    text::say,
};

/// How often a step is tried while the store is busy. SQLite itself waits 5 s each time.
const TRIES: u32 = 6;
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// The subcommands of `keys`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show how many data keys each master key encrypts, and which can't be decrypted
    Status,
    /// Add a new master key at the front of the key file, or remove an old one
    Rotate(Rotate),
    /// Encrypt every data key with the first master key; may be interrupted and repeated
    Rewrap(Rewrap),
}

/// Options of `keys rotate`.
#[derive(Debug, Args)]
pub struct Rotate {
    /// Remove this key instead, which must not encrypt any data key
    #[arg(long, value_name = "ID")]
    retire: Option<String>,
    /// Write the keys to this new file, and leave the present file unchanged
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Options of `keys rewrap`.
#[derive(Debug, Args)]
pub struct Rewrap {
    /// Print what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Number of owners in one transaction
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch_size: u16,
    /// Every running server was started again with the first master key in its list; needed only
    /// where the configuration gives the keys themselves, and no file
    #[arg(long)]
    restarted: bool,
}

/// Runs the command.
///
/// # Errors [`Failure::Failed`] if the data keys of some owners can't be unwrapped.
/// [`Failure::Fatal`] if the command can't be done at all.
pub async fn run(loaded: Loaded, command: Command) -> Result<(), Failure> {
    match command {
        Command::Status => status(&loaded.config).await,
        Command::Rotate(options) => rotate(&loaded, options).await,
        Command::Rewrap(options) => rewrap(&loaded.config, options).await,
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

fn fatal(error: impl std::fmt::Display) -> Failure {
    Failure::Fatal(error.to_string())
}

/// The database, if there is one.
fn database(config: &Config) -> Result<Database, String> {
    let survey = Survey::of(config).map_err(|error| error.to_string())?;
    if survey.fresh {
        return Err(
            "there is no database here yet: the first start creates it, and its master key"
                .to_owned(),
        );
    }
    Ok(survey.database)
}

/// Takes the shared lock of the key file, or the exclusive one if `alone`. A missing file is not
/// locked; reading it gives the error.
fn locked(file: Option<&KeyFile>, alone: bool) -> Result<Option<File>, String> {
    let file = file.filter(|file| file.path().exists());
    let lock = file.map(|file| file.lock(alone)).transpose();
    lock.map_err(|error| error.to_string())
}

/// The database and its master keys.
struct Present {
    database: Database,
    keys: MasterKeys,
}

impl Present {
    fn of(config: &Config, database: Database) -> Result<Self, String> {
        let keys = Credentials::present_keys(config, &database);
        let keys = keys.map_err(|error| error.to_string())?;
        Ok(Self { database, keys })
    }

    async fn survey(&self) -> Result<KeysSurvey, String> {
        let url = self.database.url.expose_secret();
        let found = persistence::survey_keys(url, &self.keys).await;
        found.map_err(|error| error.to_string())
    }
}

fn owners(count: u64) -> String {
    match count {
        1 => "1 owner".to_owned(),
        _ => format!("{count} owners"),
    }
}

fn some_closed(count: usize) -> Result<(), Failure> {
    match count {
        0 => Ok(()),
        1 => Err(failed("the keys of 1 owner do not open")),
        many => Err(failed(format!("the keys of {many} owners do not open"))),
    }
}

async fn status(config: &Config) -> Result<(), Failure> {
    let database = database(config).map_err(fatal)?;
    let present = Present::of(config, database).map_err(fatal)?;
    let found = present.survey().await.map_err(fatal)?;
    for id in present.keys.ids() {
        let count = found.owners.get(id).copied().unwrap_or(0);
        let mut words = format!("wraps {}", owners(count));
        let in_force = found.in_force.as_deref() == Some(id);
        if in_force {
            words.push_str("; in force for new ones");
        } else if id == present.keys.first_id() {
            words.push_str("; first in the list, `stationmaster keys rewrap` moves all to it");
        } else if count == 0 {
            words.push_str("; not needed any more by this database");
        }
        say(&format!("ok      {id}: {words}"));
    }
    for (id, count) in &found.owners {
        if !present.keys.knows(id) {
            say(&format!(
                "FAILED  {id}: wraps {}; not given",
                owners(*count)
            ));
        }
    }
    for closed in &found.closed {
        say(&format!("FAILED  {closed}"));
    }
    some_closed(found.closed.len())
}

async fn rotate(loaded: &Loaded, options: Rotate) -> Result<(), Failure> {
    let config = &loaded.config;
    let file = KeyFile::of(config);
    if config.master_keys.is_some() && options.out.is_none() {
        return Err(Failure::Usage(by_hand(loaded)));
    }
    let database = database(config).map_err(failed)?;
    // The keys are read under the lock, so that of two commands that add a key none is lost.
    let _lock = locked(file.as_ref(), true).map_err(failed)?;
    let present = Present::of(config, database).map_err(failed)?;
    let (keys, id) = if let Some(id) = options.retire {
        (retired(&present, &id).await.map_err(failed)?, id)
    } else {
        let id = fresh_id();
        (present.keys.with_fresh_first(&id).map_err(failed)?, id)
    };
    let retired = !keys.knows(&id);
    match (&options.out, &file) {
        (Some(path), _) => {
            key_file::write_out(path, &keys).map_err(failed)?;
            tell_written(path, &id, retired);
        }
        (None, Some(file)) => {
            let help = "Where it can't be written, name another file with --out";
            let changed = file.replace(&keys);
            changed.map_err(|error| failed(format!("{error}. {help}")))?;
            tell_replaced(file, &id, retired);
        }
        (None, None) => unreachable!("keys that are given themselves were refused above"),
    }
    Ok(())
}

/// The instructions if there is no file to change.
fn by_hand(loaded: &Loaded) -> String {
    let place = match loaded.values.source("STATIONMASTER_MASTER_KEYS") {
        Some(SettingSource::File) => "the configuration file",
        _ => "the environment",
    };
    format!(
        "the master keys are in {place} (STATIONMASTER_MASTER_KEYS), which this program can't change. \
         Run the command with --out FILE: it writes the new list to a file that only you may read. Make it the value \
         of STATIONMASTER_MASTER_KEYS (or let STATIONMASTER_MASTER_KEYS_FILE name it) for every server and \
         for this program, start every server again, and then run `stationmaster keys rewrap --restarted`"
    )
}

/// A new identifier: the time, and a random part. An identifier must never be used twice, because a
/// backup may still need the key that had it.
fn fresh_id() -> String {
    let today = SystemClock.now().to_string();
    let digits = today.chars().filter(char::is_ascii_digit).take(8);
    let tail = u16::from_be_bytes(domain::random::bytes());
    format!("k{}-{tail:04x}", digits.collect::<String>())
}

/// The keys without one that wraps no data key.
async fn retired(present: &Present, id: &str) -> Result<MasterKeys, String> {
    if !present.keys.knows(id) {
        return Err(format!("there is no master key {id:?} in the list"));
    }
    let Some(left) = present.keys.without(id) else {
        return Err(format!(
            "master key {id:?} is the first in the list, which wraps new data keys; add another one before it first (`stationmaster keys rotate`)"
        ));
    };
    let count = present.survey().await?.owners.get(id).copied().unwrap_or(0);
    if count > 0 {
        return Err(format!(
            "master key {id:?} still wraps the keys of {}; run `stationmaster keys rewrap` first",
            owners(count)
        ));
    }
    Ok(left)
}

fn tell_written(path: &std::path::Path, id: &str, retired: bool) {
    let path = path.display();
    say(&if retired {
        format!("master keys without {id} were written to {path}; give them to every server")
    } else {
        format!(
            "master key {id} was created; {path} contains it and the earlier ones. Give that list to every server, \
             restart each server unless it reads a key file, then run `stationmaster keys rewrap`"
        )
    });
}

fn tell_replaced(file: &KeyFile, id: &str, retired: bool) {
    let path = file.path().display();
    say(&if retired {
        format!(
            "master key {id} was removed from {path}. Keep a copy of it for as long as you keep a backup from its time"
        )
    } else {
        format!(
            "master key {id} was created, and is first in {path}. Make sure that every server has this file, \
             then run `stationmaster keys rewrap`; servers read it again when they need it"
        )
    });
}

async fn rewrap(config: &Config, options: Rewrap) -> Result<(), Failure> {
    let file = KeyFile::of(config);
    let database = database(config).map_err(fatal)?;
    let _lock = locked(file.as_ref(), false).map_err(fatal)?;
    let present = Present::of(config, database).map_err(fatal)?;
    let (database, keys) = (&present.database, present.keys);
    let options_of_store = operate::store_options(config, database, keys, false);
    let store = Store::open(options_of_store).await.map_err(fatal)?;
    let moved = Move {
        system: store.system(),
        dry: options.dry_run,
        limit: options.batch_size.into(),
        unsure: file.is_none() && !options.restarted,
    };
    let result = moved.run().await;
    store.close().await;
    some_closed(result?)
}

/// A rewrap of the data keys of all owners.
struct Move {
    system: System,
    dry: bool,
    limit: u64,
    /// Whether a running server may lack the first master key without a way to get it.
    unsure: bool,
}

impl Move {
    /// Rewraps everything; returns for how many owners the data keys can't be unwrapped.
    async fn run(&self) -> Result<usize, Failure> {
        let id = self.system.operations().first_master_key();
        let total = self
            .system
            .operations()
            .keys_to_rewrap()
            .await
            .map_err(fatal)?;
        if total > 0 && self.unsure && !self.dry {
            self.refuse_beside_servers(&id).await?;
        }
        let (mut moved, mut closed, mut place) = (0, 0, None);
        let mut progress = Progress::new(total);
        loop {
            let step = self.step(place).await.map_err(|error| {
                progress.clear();
                fatal(format!(
                    "{error}. {} moved before that, and stay so; run the same again for the others",
                    owners(moved)
                ))
            })?;
            for one in &step.closed {
                progress.clear();
                say(&format!("FAILED  {one}"));
            }
            moved += step.moved;
            closed += step.closed.len();
            let looked_at = step.moved + step.passed;
            progress.advance(looked_at + u64::try_from(step.closed.len()).unwrap_or(0));
            place = step.next;
            if place.is_none() {
                break;
            }
        }
        progress.clear();
        say(&match (total, self.dry) {
            (0, _) => format!("master key {id} wraps every owner's keys; there is nothing to do"),
            (_, true) => format!(
                "the keys of {} would be wrapped by master key {id}; nothing was changed",
                owners(moved)
            ),
            _ => format!(
                "the keys of {} are wrapped by master key {id} now",
                owners(moved)
            ),
        });
        Ok(closed)
    }

    async fn refuse_beside_servers(&self, id: &str) -> Result<(), Failure> {
        match self
            .system
            .operations()
            .live_processes()
            .await
            .map_err(fatal)?
        {
            0 => Ok(()),
            _ => Err(fatal(format!(
                "servers work on this database, and a server that was given its master keys themselves knows only \
                 those of its start. Start each again with {id:?} in its list, then run this with --restarted"
            ))),
        }
    }

    /// Makes one step, and repeats it while a server keeps the store busy.
    async fn step(&self, place: Option<RewrapCursor>) -> Result<Rewrapped, StoreError> {
        let mut tries = 1;
        loop {
            match self
                .system
                .operations()
                .rewrap_keys(place, self.limit, self.dry)
                .await
            {
                Err(error) if error.may_pass() && tries < TRIES => tries += 1,
                done => return done,
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_of_keys_are_a_day_and_something_of_their_own() {
        let (one, two) = (fresh_id(), fresh_id());
        assert!(
            one.len() == "k20260101-0000".len() && one.starts_with("k2"),
            "{one}"
        );
        assert!(MasterKeys::parse(&MasterKeys::generate_text(&one)).is_ok());
        assert_eq!(one[..9], two[..9]);
    }
}
