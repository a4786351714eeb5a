//! Prepares the data directory, its lock, the master keys and the bootstrap token, before the store
//! opens.
//!
//! With SQLite, the first start creates the keys and the token in files that only their owner may
//! read. If the database exists, no key file is created, because the secrets in that database are
//! encrypted with another key. With PostgreSQL nothing is created: each replica would create its
//! own keys, so they must be configured.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use domain::{
    seal::MasterKeys,
    token::{self, Prefix},
};
use secrecy::{ExposeSecret as _, SecretString};

use crate::{
    config::{self, Config, DatabaseUrl},
    key_file::KeyFile,
    secret_file::{DataDirError, FILE_MODE, Result, io_at, read_private, write_whole},
};

/// The name of the file with the bootstrap token.
pub const TOKEN_FILE: &str = "bootstrap-token";
/// The name of the lock file.
pub const LOCK_FILE: &str = "lock";

const DIRECTORY_MODE: u32 = 0o700;
/// The identifier of the master key that the first start creates.
const FIRST_KEY_ID: &str = "k1";

/// The database, ready to be opened. Dropping this releases its locks.
#[derive(Debug)]
pub struct Database {
    /// The URL for the store. It may contain a password.
    pub url: SecretString,
    /// The SQLite file; `None` with PostgreSQL.
    pub file: Option<PathBuf>,
    /// Whether the SQLite file contains data; true with PostgreSQL.
    exists: bool,
    _locks: Vec<File>,
}

impl Database {
    /// A PostgreSQL database, which needs no preparation.
    fn remote(config: &Config) -> Self {
        let url = match &config.database_url {
            Some(DatabaseUrl::Postgres(url)) => url.clone(),
            _ => unreachable!("without a SQLite path the configuration names PostgreSQL"),
        };
        Self {
            url,
            file: None,
            exists: true,
            _locks: Vec::new(),
        }
    }

    /// Whether this start creates the database. Always false with PostgreSQL.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        !self.exists
    }

    /// Creates the data directory, takes the locks, and creates a new SQLite database's file, which
    /// only its owner may read. Does nothing with PostgreSQL.
    ///
    /// # Errors
    /// The directory can't be created or written, or another process uses it.
    pub fn prepare(config: &Config) -> Result<Self> {
        let Some(file) = config.sqlite_path() else {
            return Ok(Self::remote(config));
        };
        make_directory(&config.data_dir)?;
        let mut locks = vec![lock(&config.data_dir, &config.data_dir.join(LOCK_FILE))?];
        let file = resolved(&file)?;
        if !lies_in(&file, &config.data_dir)? {
            // Two data directories may use the same database, so another lock is beside the
            // database.
            let mut name = file.clone().into_os_string();
            name.push(".lock");
            locks.push(lock(&file, Path::new(&name))?);
        }
        let exists = holds_data(&file)?;
        // SQLite gives its journal files the mode of the database file.
        let made = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(FILE_MODE)
            .open(&file);
        made.map_err(io_at("opening the database", &file))?;
        let url = SecretString::from(sqlite_url(&file)?);
        Ok(Self {
            url,
            file: Some(file),
            exists,
            _locks: locks,
        })
    }
}

/// The state of the data directory, read without a change.
#[derive(Debug)]
pub struct Survey {
    /// The database as [`Database::prepare`] would return it, but without a lock.
    pub database: Database,
    /// Whether there was no start yet: the data directory or the database does not exist.
    pub fresh: bool,
    /// The running process that holds the lock, if there is one.
    pub holder: Option<String>,
}

impl Survey {
    /// Reads the state of the data directory. Creates nothing and keeps no lock.
    ///
    /// # Errors
    /// A file there can't be read.
    pub fn of(config: &Config) -> Result<Self> {
        let Some(file) = config.sqlite_path() else {
            let database = Database::remote(config);
            return Ok(Self {
                database,
                fresh: false,
                holder: None,
            });
        };
        let exists = holds_data(&file)?;
        let url = SecretString::from(sqlite_url(&file)?);
        let lock = config.data_dir.join(LOCK_FILE);
        let holder = match File::open(&lock) {
            Ok(mut lock) => match lock.try_lock_shared() {
                Err(TryLockError::WouldBlock) => Some(holder(&mut lock)),
                _ => None,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_at("opening the lock", &lock)(error)),
        };
        let database = Database {
            url,
            file: Some(file),
            exists,
            _locks: Vec::new(),
        };
        Ok(Self {
            database,
            fresh: !exists,
            holder,
        })
    }
}

/// The master keys and bootstrap tokens of this start.
#[derive(Debug)]
pub struct Credentials {
    /// The master keys.
    pub master_keys: MasterKeys,
    /// The operator's tokens, one or two.
    pub bootstrap_tokens: Vec<SecretString>,
    /// The file of the bootstrap token, and whether this start created it.
    pub token_file: Option<(PathBuf, bool)>,
}

impl Credentials {
    /// Takes keys and token from the configuration, else from their files, else (SQLite only)
    /// creates the files.
    ///
    /// # Errors
    /// A file is missing and can't be created, is open to others, or is malformed.
    pub fn prepare(config: &Config, database: &Database) -> Result<Self> {
        let master_keys = master_keys(config, database, &mut write_new)?;
        let (bootstrap_tokens, token_file) = bootstrap_tokens(config, database, &mut write_new)?;
        Ok(Self {
            master_keys,
            bootstrap_tokens,
            token_file,
        })
    }

    /// Checks whether [`Credentials::prepare`] would succeed. Creates nothing.
    ///
    /// # Errors
    /// As [`Credentials::prepare`].
    pub fn check(config: &Config, database: &Database) -> Result<()> {
        Self::present_keys(config, database)?;
        bootstrap_tokens(config, database, &mut nothing)?;
        Ok(())
    }

    /// The present master keys. If there are none, returns new ones without storing them.
    ///
    /// # Errors
    /// As [`Credentials::prepare`], for the keys alone.
    pub fn present_keys(config: &Config, database: &Database) -> Result<MasterKeys> {
        master_keys(config, database, &mut nothing)
    }
}

/// Writes no file.
#[expect(clippy::unnecessary_wraps, reason = "the shape of what writes one")]
fn nothing(_: &Path, _: &str) -> Result<()> {
    Ok(())
}

/// Writes a file with a new secret; for a check, it writes none.
type Write<'a> = &'a mut dyn FnMut(&Path, &str) -> Result<()>;

fn master_keys(config: &Config, database: &Database, write: Write<'_>) -> Result<MasterKeys> {
    if let Some(keys) = &config.master_keys {
        return Ok(keys.clone());
    }
    let (Some(keys), given) = (KeyFile::of(config), &config.master_keys_file) else {
        return Err(DataDirError::Required {
            name: "STATIONMASTER_MASTER_KEYS (or STATIONMASTER_MASTER_KEYS_FILE)",
            how: "echo k1:$(openssl rand -base64 32)",
        });
    };
    if given.is_some() || exists(keys.path())? {
        return keys.read();
    }
    if let (true, Some(file)) = (database.exists, &database.file) {
        return Err(DataDirError::KeysLost {
            database: file.clone(),
            keys: keys.path().to_owned(),
        });
    }
    let text = MasterKeys::generate_text(FIRST_KEY_ID);
    write(keys.path(), &text)?;
    keys.parse(&text)
}

type Tokens = (Vec<SecretString>, Option<(PathBuf, bool)>);

fn bootstrap_tokens(config: &Config, database: &Database, write: Write<'_>) -> Result<Tokens> {
    if let Some(tokens) = &config.bootstrap_tokens {
        return Ok((tokens.clone(), None));
    }
    if database.file.is_none() {
        return Err(DataDirError::Required {
            name: "STATIONMASTER_BOOTSTRAP_TOKEN",
            how: "openssl rand -hex 32",
        });
    }
    let path = config.data_dir.join(TOKEN_FILE);
    if exists(&path)? {
        let tokens = config::parse_bootstrap_tokens(&read_private(&path)?).map_err(|wrong| {
            DataDirError::Content {
                path: path.clone(),
                expected: "a bootstrap token",
                wrong,
            }
        })?;
        return Ok((tokens, Some((path, false))));
    }
    // Nothing is encrypted with this token, so a lost one may be replaced.
    let token = token::generate(Prefix::Boot);
    write(&path, token.expose_secret())?;
    Ok((vec![token], Some((path, true))))
}

impl Credentials {
    /// The present tokens of the operator. If there is none, returns a new one without storing it.
    ///
    /// # Errors
    /// As [`Credentials::prepare`], for the tokens alone.
    pub fn present_tokens(config: &Config, database: &Database) -> Result<Vec<SecretString>> {
        bootstrap_tokens(config, database, &mut nothing).map(|(tokens, _)| tokens)
    }
}

fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .map_err(io_at("making the data directory", path))
}

/// The path with the links of its directory followed, and the file's own link if it exists.
fn resolved(path: &Path) -> Result<PathBuf> {
    if exists(path)? {
        return fs::canonicalize(path).map_err(io_at("finding", path));
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default();
    let parent = fs::canonicalize(parent).map_err(io_at("finding the directory", parent))?;
    Ok(parent.join(name))
}

fn lies_in(file: &Path, directory: &Path) -> Result<bool> {
    let directory = fs::canonicalize(directory).map_err(io_at("finding", directory))?;
    Ok(file.parent() == Some(&directory))
}

/// Takes the lock, which the operating system releases when this process ends, however it ends.
fn lock(path: &Path, lock: &Path) -> Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(lock)
        .map_err(io_at("opening the lock", lock))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(DataDirError::Locked {
                path: path.to_owned(),
                lock: lock.to_owned(),
                holder: holder(&mut file),
            });
        }
        Err(TryLockError::Error(error)) => return Err(io_at("locking", lock)(error)),
    }
    let note = format!("{}\n", std::process::id());
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(note.as_bytes()))
        .map_err(io_at("writing the lock", lock))?;
    Ok(file)
}

/// The process that wrote the lock file. Between locking and writing, the file names none.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(32).read_to_string(&mut text);
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("process {pid}"),
        _ => "another process".to_owned(),
    }
}

/// Whether SQLite has written anything: to the file, or to its log beside it.
fn holds_data(file: &Path) -> Result<bool> {
    let mut log = file.to_owned().into_os_string();
    log.push("-wal");
    for path in [file, Path::new(&log)] {
        match fs::metadata(path) {
            Ok(found) if found.len() > 0 => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_at("looking at", path)(error)),
        }
    }
    Ok(false)
}

/// `sqlite://` and the path, with what would end or change the path escaped.
fn sqlite_url(file: &Path) -> Result<String> {
    let text = file
        .to_str()
        .ok_or_else(|| DataDirError::NotUtf8(file.to_owned()))?;
    Ok(format!(
        "sqlite://{}",
        text.replace('%', "%25")
            .replace('?', "%3F")
            .replace('#', "%23")
    ))
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(io_at("looking at", path))
}

/// Writes a new secret.
fn write_new(path: &Path, text: &str) -> Result<()> {
    write_whole(path, text, None)
}

#[cfg(test)]
mod tests;
