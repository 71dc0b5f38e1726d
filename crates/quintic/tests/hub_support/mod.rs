//! A model hub on 127.0.0.1: a listing, files with etags, and the ways it can fail.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]
#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

const REPO: &str = "/org/tiny/resolve/";
const REVISIONS: [&str; 3] = ["main", "refs%2Fpr%2F3", COMMIT];

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    headers: HashMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What the hub serves and how it misbehaves.
#[derive(Default)]
struct Behaviour {
    files: Vec<(String, Vec<u8>)>,
    stored: Vec<String>,
    /// File whose next so many answers break off after half of what is left.
    cut: Option<(String, usize)>,
    no_ranges: bool,
    status: Option<u16>,
    etag: Option<String>,
    commit: Option<String>,
    requests: Vec<Request>,
}

/// Serves from the first call of [`Hub::endpoint`] on, for as long as the test runs.
#[derive(Default)]
pub struct Hub {
    behaviour: Arc<Mutex<Behaviour>>,
    address: OnceLock<SocketAddr>,
}

impl Hub {
    pub fn new() -> Self {
        Hub::default()
    }

    fn set(self, change: impl FnOnce(&mut Behaviour)) -> Self {
        change(&mut self.behaviour.lock().unwrap());
        self
    }

    pub fn with(self, name: &str, bytes: &[u8]) -> Self {
        self.set(|hub| hub.files.push((name.to_owned(), bytes.to_vec())))
    }

    /// Serves the file by a redirect to a store on another host.
    pub fn store(self, name: &str) -> Self {
        self.set(|hub| hub.stored.push(name.to_owned()))
    }

    /// Breaks the connection in the middle of this file, so many times.
    pub fn cut(self, name: &str, times: usize) -> Self {
        self.set(|hub| hub.cut = Some((name.to_owned(), times)))
    }

    pub fn without_ranges(self) -> Self {
        self.set(|hub| hub.no_ranges = true)
    }

    /// Answers everything with this status.
    pub fn status(self, status: u16) -> Self {
        self.set(|hub| hub.status = Some(status))
    }

    pub fn etag(self, etag: &str) -> Self {
        self.set(|hub| hub.etag = Some(etag.to_owned()))
    }

    pub fn commit_header(self, commit: &str) -> Self {
        self.set(|hub| hub.commit = Some(commit.to_owned()))
    }

    pub fn requests(&self) -> Vec<Request> {
        self.behaviour.lock().unwrap().requests.clone()
    }

    pub fn endpoint(&self) -> String {
        let address = self.address.get_or_init(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let behaviour = self.behaviour.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    // A client that hangs up is one of the things tested.
                    let _ = serve(stream, &behaviour, address);
                }
            });
            address
        });
        format!("http://{address}")
    }
}

fn serve(stream: TcpStream, hub: &Mutex<Behaviour>, address: SocketAddr) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let request = Request {
        method,
        path,
        headers,
    };
    let answer = {
        let mut hub = hub.lock().unwrap();
        hub.requests.push(request.clone());
        answer(&mut hub, &request, address)
    };
    answer.write(stream, request.method == "HEAD")
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes of the body that are sent before the connection is closed.
    sent: Option<usize>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Answer {
            status,
            headers: Vec::new(),
            body: body.into(),
            sent: None,
        }
    }

    fn write(self, mut stream: TcpStream, head_only: bool) -> std::io::Result<()> {
        let mut text = format!(
            "HTTP/1.1 {} x\r\nconnection: close\r\ncontent-length: {}\r\n",
            self.status,
            self.body.len()
        );
        for (name, value) in self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{text}\r\n").as_bytes())?;
        if !head_only {
            stream.write_all(&self.body[..self.sent.unwrap_or(self.body.len())])?;
        }
        stream.flush()
    }
}

fn answer(hub: &mut Behaviour, request: &Request, address: SocketAddr) -> Answer {
    if let Some(status) = hub.status {
        return Answer::new(status, "");
    }
    let path = request.path.as_str();
    if let Some(revision) = path.strip_prefix("/api/models/org/tiny/revision/") {
        if !REVISIONS.contains(&revision) {
            return Answer::new(404, "");
        }
        let files: Vec<_> = hub
            .files
            .iter()
            .map(|(name, _)| serde_json::json!({"rfilename": name}))
            .collect();
        let listing = serde_json::json!({"sha": COMMIT, "siblings": files});
        return Answer::new(200, listing.to_string());
    }
    let (file, in_store) = match path.strip_prefix("/store/") {
        Some(file) => (file, true),
        None => match path
            .strip_prefix(REPO)
            .and_then(|rest| rest.split_once('/'))
        {
            Some((_, file)) => (file, false),
            None => return Answer::new(404, ""),
        },
    };
    let Some((name, bytes)) = hub.files.iter().find(|(name, _)| name == file).cloned() else {
        return Answer::new(404, "");
    };
    if hub.stored.contains(&name) && !in_store {
        return to_store(hub, &name, bytes.len(), address);
    }
    contents(hub, request, &name, bytes)
}

fn etag(hub: &Behaviour, name: &str) -> String {
    let etag = format!("etag-{}", name.replace('/', "-"));
    format!("\"{}\"", hub.etag.as_ref().unwrap_or(&etag))
}

fn to_store(hub: &Behaviour, name: &str, n_bytes: usize, address: SocketAddr) -> Answer {
    let mut answer = Answer::new(302, "");
    answer.headers = vec![
        (
            "location",
            format!("http://localhost:{}/store/{name}", address.port()),
        ),
        ("etag", "\"of-the-redirect\"".to_owned()),
        ("x-linked-etag", etag(hub, name)),
        ("x-linked-size", n_bytes.to_string()),
        ("x-repo-commit", COMMIT.to_owned()),
    ];
    answer
}

fn contents(hub: &mut Behaviour, request: &Request, name: &str, bytes: Vec<u8>) -> Answer {
    let from = request
        .header("range")
        .filter(|_| !hub.no_ranges)
        .and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse::<usize>()
                .ok()
        });
    let total = bytes.len();
    let mut answer = match from {
        Some(from) if from >= total => return Answer::new(416, ""),
        Some(from) => {
            let mut answer = Answer::new(206, &bytes[from..]);
            let range = format!("bytes {from}-{}/{total}", total - 1);
            answer.headers.push(("content-range", range));
            answer
        }
        None => Answer::new(200, bytes),
    };
    answer.headers.push(("etag", etag(hub, name)));
    let commit = hub.commit.clone().unwrap_or(COMMIT.to_owned());
    answer.headers.push(("x-repo-commit", commit));
    if request.method == "GET"
        && let Some((file, times)) = &mut hub.cut
        && file == name
        && *times > 0
    {
        *times -= 1;
        answer.sent = Some(answer.body.len() / 2);
    }
    answer
}
