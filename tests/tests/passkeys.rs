//! Passkeys before two judges: our verifier, and the server of the Python package `fido2`. Both must
//! say the same, but for the rules that ours alone has.

use std::process::Stdio;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use identity::passkeys::{
    PasskeyError, RelyingParty, StoredPasskey, verify_assertion, verify_registration,
};
use serde_json::{Value, json};
use tests::{
    authenticator::{
        ATTESTED, Authenticator, BACKED_UP, Draft, EXTENSIONS, Site, USER_PRESENT, USER_VERIFIED,
        bytes, cose, int, text,
    },
    tools,
};
use tokio::{io::AsyncWriteExt as _, process::Command};
use url::Url;

use crate::verifiers;

const CHALLENGE: [u8; 32] = [42; 32];
const ALGORITHMS: [i64; 3] = [-8, -7, -257];
const ORIGIN: &str = "https://stationmaster.example";
const RP_ID: &str = "stationmaster.example";

/// What the judges must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    BothAccept,
    BothRefuse,
    /// Our verifier refuses what the other one does not look at.
    OnlyOursRefuses,
}

use Expected::{BothAccept, BothRefuse, OnlyOursRefuses};

/// Something that a test changes in an answer before it is signed.
type Change = (&'static str, Expected, fn(&mut Draft));

/// Changes of which registration and sign-in may have any.
const CHANGES: [Change; 20] = [
    ("nothing", BothAccept, |_| ()),
    ("a counter", BothAccept, |draft| draft.count = 7),
    ("flags of no meaning", BothAccept, |draft| {
        draft.flags |= 0x22;
    }),
    ("extensions", BothAccept, |draft| {
        draft.flags |= EXTENSIONS;
        draft.last = vec![0xa1];
        draft.last.extend(text("credProtect"));
        draft.last.extend(int(2));
    }),
    ("a member of tomorrow", BothAccept, |draft| {
        draft.set("other_keys_can_be_added_here", json!("do not compare"));
    }),
    ("no word on other origins", BothAccept, |draft| {
        draft.set("crossOrigin", json!(null));
    }),
    ("another challenge", BothRefuse, |draft| {
        draft.set("challenge", json!(URL_SAFE_NO_PAD.encode([43; 32])));
    }),
    ("half a challenge", BothRefuse, |draft| {
        draft.set("challenge", json!(URL_SAFE_NO_PAD.encode([42; 16])));
    }),
    ("another origin", BothRefuse, |draft| {
        draft.set("origin", json!("https://evil.example"));
    }),
    ("an origin in clear", BothRefuse, |draft| {
        draft.set("origin", json!("http://stationmaster.example"));
    }),
    ("an origin below", BothRefuse, |draft| {
        draft.set("origin", json!("https://evil.stationmaster.example"));
    }),
    ("a ceremony of neither kind", BothRefuse, |draft| {
        draft.set("type", json!("payment.get"));
    }),
    ("another site", BothRefuse, |draft| {
        "evil.example".clone_into(&mut draft.rp_id);
    }),
    ("nobody there", BothRefuse, |draft| {
        draft.flags &= !USER_PRESENT;
    }),
    ("nobody checked", BothRefuse, |draft| {
        draft.flags &= !USER_VERIFIED;
    }),
    ("a byte too many", BothRefuse, |draft| draft.last = vec![0]),
    ("extensions that are not there", BothRefuse, |draft| {
        draft.flags |= EXTENSIONS;
    }),
    ("a page inside another", OnlyOursRefuses, |draft| {
        draft.set("crossOrigin", json!(true));
    }),
    ("a backup that can't be", OnlyOursRefuses, |draft| {
        draft.flags |= BACKED_UP;
    }),
    ("an origin twice", OnlyOursRefuses, |draft| {
        let twice = r#"{"origin":"https://evil.example","#;
        draft.client_data = draft.client_data.replacen('{', twice, 1);
    }),
];

/// Changes of registrations.
const OF_REGISTRATIONS: [Change; 9] = [
    ("the other ceremony", BothRefuse, |draft| {
        draft.set("type", json!("webauthn.get"));
    }),
    ("no passkey", BothRefuse, |draft| draft.flags &= !ATTESTED),
    ("the head of a key", BothRefuse, |draft| {
        draft.key.truncate(1);
    }),
    ("half a key", OnlyOursRefuses, |draft| {
        draft.key = cose(&[
            (1, int(1)),
            (3, int(-8)),
            (-1, int(6)),
            (-2, vec![0x58, 32, 9]),
        ]);
    }),
    ("no algorithm", BothRefuse, |draft| {
        draft.key = cose(&[(1, int(1)), (-1, int(6)), (-2, bytes(&[9; 32]))]);
    }),
    ("a statement of another format", BothAccept, |draft| {
        "packed".clone_into(&mut draft.format);
        draft.statement = vec![0xa1];
        draft.statement.extend(text("sig"));
        draft.statement.extend(bytes(&[1; 70]));
    }),
    ("a key that signs everything", OnlyOursRefuses, |draft| {
        draft.key = cose(&[
            (1, int(1)),
            (3, int(-8)),
            (-1, int(6)),
            (-2, bytes(&[0; 32])),
        ]);
    }),
    (
        "an algorithm that was not asked for",
        OnlyOursRefuses,
        |draft| {
            draft.key = cose(&[
                (1, int(2)),
                (3, int(-35)),
                (-1, int(2)),
                (-2, bytes(&[9; 48])),
                (-3, bytes(&[8; 48])),
            ]);
        },
    ),
    ("a parameter of the key twice", OnlyOursRefuses, |draft| {
        draft.key = cose(&[
            (1, int(1)),
            (3, int(-8)),
            (-1, int(6)),
            (-2, bytes(&[8; 32])),
            (-2, bytes(&[9; 32])),
        ]);
    }),
];

/// Changes of sign-ins.
const OF_SIGN_INS: [Change; 1] = [("the other ceremony", BothRefuse, |draft| {
    draft.set("type", json!("webauthn.create"));
})];

/// A case, and what the judges must say.
struct Case {
    name: String,
    expected: Expected,
    ours: Result<(), PasskeyError>,
    input: Value,
}

fn site() -> Site {
    Site {
        rp_id: RP_ID.to_owned(),
        origin: ORIGIN.to_owned(),
    }
}

fn party() -> RelyingParty {
    RelyingParty::new(&Url::parse(ORIGIN).unwrap(), "Stationmaster").unwrap()
}

fn input(kind: &str) -> Value {
    json!({
        "kind": kind,
        "rp_id": RP_ID,
        "origin": ORIGIN,
        "challenge": URL_SAFE_NO_PAD.encode(CHALLENGE),
    })
}

fn registration(name: String, expected: Expected, answer: Value) -> Case {
    let response = serde_json::from_value(answer.clone()).unwrap();
    let ours = verify_registration(&party(), &CHALLENGE, &response).map(|_| ());
    let mut input = input("register");
    input["answer"] = answer;
    Case {
        name,
        expected,
        ours,
        input,
    }
}

fn sign_in(name: String, expected: Expected, of: &Authenticator, answer: Value) -> Case {
    let response = serde_json::from_value(answer.clone()).unwrap();
    let key = of.key();
    let passkey = StoredPasskey {
        credential_id: &of.credential_id,
        public_key: &key,
        sign_count: 0,
        user_handle: &of.user_handle,
    };
    let ours = verify_assertion(&party(), &CHALLENGE, &passkey, &response).map(|_| ());
    let mut input = input("sign_in");
    input["answer"] = answer;
    input["key"] = json!(URL_SAFE_NO_PAD.encode(&key));
    input["credential_id"] = json!(URL_SAFE_NO_PAD.encode(&of.credential_id));
    Case {
        name,
        expected,
        ours,
        input,
    }
}

/// Every change, in answers of an authenticator of this algorithm.
fn cases(algorithm: i64) -> Vec<Case> {
    let authenticator = Authenticator::new(algorithm, &site());
    let mut cases = Vec::new();
    for (name, expected, change) in CHANGES.iter().chain(&OF_REGISTRATIONS) {
        let mut draft = authenticator.registration(&CHALLENGE);
        change(&mut draft);
        let name = format!("registration with {algorithm}: {name}");
        cases.push(registration(
            name,
            *expected,
            authenticator.register(&draft),
        ));
    }
    for (name, expected, change) in CHANGES.iter().chain(&OF_SIGN_INS) {
        let mut draft = authenticator.sign_in(&CHALLENGE, 1);
        change(&mut draft);
        let name = format!("sign-in with {algorithm}: {name}");
        let answer = authenticator.assert(&draft);
        cases.push(sign_in(name, *expected, &authenticator, answer));
    }
    let good = authenticator.assert(&authenticator.sign_in(&CHALLENGE, 1));
    for member in ["authenticatorData", "signature", "clientDataJSON"] {
        let text = good["response"][member].as_str().unwrap();
        let mut changed = URL_SAFE_NO_PAD.decode(text).unwrap();
        let at = changed.len() - 1;
        changed[at] ^= 1;
        let mut answer = good.clone();
        answer["response"][member] = json!(URL_SAFE_NO_PAD.encode(changed));
        let name = format!("sign-in with {algorithm}: {member} changed after signing");
        cases.push(sign_in(name, BothRefuse, &authenticator, answer));
    }
    let mut other = Authenticator::new(algorithm, &site());
    let answer = other.assert(&other.sign_in(&CHALLENGE, 1));
    let name = format!("sign-in with {algorithm}: another passkey");
    cases.push(sign_in(name, BothRefuse, &authenticator, answer));
    // All authenticators with RSA have the one key that there is.
    if algorithm != -257 {
        other.credential_id.clone_from(&authenticator.credential_id);
        other.user_handle.clone_from(&authenticator.user_handle);
        let answer = other.assert(&other.sign_in(&CHALLENGE, 1));
        let name = format!("sign-in with {algorithm}: another key");
        cases.push(sign_in(name, BothRefuse, &authenticator, answer));
    }
    cases
}

/// What `fido2` says to each line.
async fn ask(lines: &[Value]) -> Vec<String> {
    let mut child = Command::new(tools::python())
        .arg(tools::root().join("tests/programs/fido2_judge.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let texts: Vec<String> = lines.iter().map(Value::to_string).collect();
    let input = texts.join("\n");
    let mut stdin = child.stdin.take().unwrap();
    let written = tokio::spawn(async move { stdin.write_all(input.as_bytes()).await });
    let output = child.wait_with_output().await.unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    written.await.unwrap().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let said: Vec<String> = said.lines().map(str::to_owned).collect();
    assert_eq!(said.len(), lines.len(), "{words}");
    said
}

#[tokio::test]
async fn both_judges_say_the_same() {
    if !verifiers::installed("passkeys::both_judges_say_the_same") {
        return;
    }
    let cases: Vec<Case> = ALGORITHMS.into_iter().flat_map(cases).collect();
    assert!(cases.len() > 100);
    let inputs: Vec<Value> = cases.iter().map(|case| case.input.clone()).collect();
    let mut surprises = Vec::new();
    for (case, said) in cases.iter().zip(ask(&inputs).await) {
        assert!(said == "ok" || said.starts_with("refused: "), "{said}");
        let found = match (case.ours.is_ok(), said == "ok") {
            (true, true) => Some(BothAccept),
            (false, false) => Some(BothRefuse),
            (false, true) => Some(OnlyOursRefuses),
            (true, false) => None,
        };
        if found != Some(case.expected) {
            surprises.push(format!("{}: {:?}, {said}", case.name, case.ours));
        }
    }
    assert!(surprises.is_empty(), "{surprises:#?}");
}

#[tokio::test]
async fn what_the_other_judge_encodes_is_accepted() {
    if !verifiers::installed("passkeys::what_the_other_judge_encodes_is_accepted") {
        return;
    }
    let inputs = ALGORITHMS.map(|algorithm| {
        let mut input = input("make");
        input["algorithm"] = json!(algorithm);
        input
    });
    for (algorithm, made) in ALGORITHMS.into_iter().zip(ask(&inputs).await) {
        let made: Value = serde_json::from_str(&made).unwrap();
        let response = serde_json::from_value(made["registration"].clone()).unwrap();
        let passkey = verify_registration(&party(), &CHALLENGE, &response).unwrap();
        assert_eq!(
            (passkey.algorithm.cose(), passkey.sign_count),
            (algorithm, 1)
        );
        let response = serde_json::from_value(made["sign_in"].clone()).unwrap();
        let stored = StoredPasskey {
            credential_id: &passkey.credential_id,
            public_key: &passkey.public_key,
            sign_count: passkey.sign_count,
            user_handle: b"the handle of a user",
        };
        let verified = verify_assertion(&party(), &CHALLENGE, &stored, &response).unwrap();
        assert_eq!(verified.sign_count, 2);
    }
}
