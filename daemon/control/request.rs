//! What a request asks for: method, path and query as a [`Route`]. Pure; knows neither bodies nor the mirror.

use std::path::PathBuf;

use hyper::{HeaderMap, Method, Uri};

use crate::api::{ErrorBody, ErrorCode, PROTOCOL, PROTOCOL_HEADER, route};
use crate::mirror::handle::{Hint, Options};

/// Names of one kind in a hint: a session and its sub-agent are two.
const HINTED_NAMES_MAX: usize = 8;

/// Longest name in a hint: no path of the system is longer.
const HINTED_BYTES_MAX: usize = 4096;

/// A request that is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// `GET /v1/status`
    Status,
    /// `GET /v1/sessions`
    List,
    /// `GET /v1/events`
    Events,
    /// `GET /metrics`
    Metrics,
    /// `GET /v1/sessions/<session>/content`
    Content { id: String, generation: Option<u32>, tail: Option<u64> },
    /// `POST /v1/sessions/<session>/compact`
    Compact { id: String, keep_tail: usize },
    /// `POST /v1/sessions/<session>/stop`
    Stop { id: String },
    /// `POST /v1/sessions/<session>/start`
    Start { id: String },
    /// `POST /v1/verify`, `POST /v1/sessions/<session>/verify`
    Verify { id: Option<String>, options: Options },
    /// `POST /v1/flush`, `POST /v1/sessions/<session>/flush`
    Flush { id: Option<String> },
    /// `POST /v1/hint`
    Hint(Hint),
}

impl Route {
    /// Reads method, path and query.
    pub(super) fn parse(method: &Method, uri: &Uri) -> Result<Route, ErrorBody> {
        let path = uri.path();
        let mut query = Query::parse(uri.query())?;
        match path {
            route::STATUS => expect(method, Method::GET, path).and(query.end(Route::Status)),
            route::SESSIONS => expect(method, Method::GET, path).and(query.end(Route::List)),
            route::EVENTS => expect(method, Method::GET, path).and(query.end(Route::Events)),
            route::METRICS => expect(method, Method::GET, path).and(query.end(Route::Metrics)),
            route::FLUSH => {
                expect(method, Method::POST, path).and(query.end(Route::Flush { id: None }))
            }
            route::HINT => {
                expect(method, Method::POST, path)?;
                let sessions = query.names("session")?;
                let paths = query.names("path")?.into_iter().map(PathBuf::from).collect();
                query.end(Route::Hint(Hint { sessions, paths }))
            }
            route::VERIFY => {
                expect(method, Method::POST, path)?;
                let options = query.options()?;
                query.end(Route::Verify { id: None, options })
            }
            _ => {
                let rest = path.strip_prefix(route::SESSIONS).and_then(|p| p.strip_prefix('/'));
                let (session, verb) =
                    rest.and_then(|rest| rest.rsplit_once('/')).ok_or_else(|| no_route(path))?;
                Route::of_session(method, path, session, verb, query)
            }
        }
    }

    fn of_session(
        method: &Method,
        path: &str,
        session: &str,
        verb: &str,
        mut query: Query,
    ) -> Result<Route, ErrorBody> {
        let wanted = match verb {
            route::CONTENT => Method::GET,
            route::COMPACT
            | route::STOP
            | route::START
            | route::FLUSH_SESSION
            | route::VERIFY_SESSION => Method::POST,
            _ => return Err(no_route(path)),
        };
        expect(method, wanted, path)?;
        let id = decode(session, "session in the path")?;
        match verb {
            route::CONTENT => {
                let generation = query.number("generation")?;
                let tail = query.number("tail")?;
                query.end(Route::Content { id, generation, tail })
            }
            route::COMPACT => {
                let keep_tail = query.number("keep_tail")?.unwrap_or(0);
                query.end(Route::Compact { id, keep_tail })
            }
            route::VERIFY_SESSION => {
                let options = query.options()?;
                query.end(Route::Verify { id: Some(id), options })
            }
            route::STOP => query.end(Route::Stop { id }),
            route::START => query.end(Route::Start { id }),
            _ => query.end(Route::Flush { id: Some(id) }),
        }
    }
}

/// Refuses a client that speaks a newer protocol than this daemon: its words may mean something else.
pub(super) fn check_protocol(headers: &HeaderMap) -> Result<(), ErrorBody> {
    let Some(value) = headers.get(PROTOCOL_HEADER) else { return Ok(()) };
    let number: Option<u32> = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    match number {
        None => Err(bad(format!("the header {PROTOCOL_HEADER} is not a number"))),
        Some(number) if number > PROTOCOL => Err(ErrorBody {
            hint: Some("update tracecraftd and restart it: `tracecraftctl service restart`".into()),
            ..bad(format!("the client speaks protocol {number}, this daemon {PROTOCOL}"))
        }),
        Some(_) => Ok(()),
    }
}

/// A [`ErrorCode::BadRequest`] without a hint.
pub(super) fn bad(message: String) -> ErrorBody {
    ErrorBody { code: ErrorCode::BadRequest, message, hint: None }
}

fn expect(method: &Method, wanted: Method, path: &str) -> Result<(), ErrorBody> {
    if *method == wanted {
        return Ok(());
    }
    Err(ErrorBody {
        code: ErrorCode::MethodNotAllowed,
        message: format!("{path} is for {wanted}, not {method}"),
        hint: None,
    })
}

fn no_route(path: &str) -> ErrorBody {
    ErrorBody {
        code: ErrorCode::NoSuchRoute,
        message: format!("no such route: {path}"),
        hint: Some(format!(
            "{} and {} are good ones to begin with",
            route::STATUS,
            route::SESSIONS
        )),
    }
}

/// Undoes percent-encoding once: `codex%2Fa%257Eb` is the key `codex/a%7Eb`. `what` is for a person who is refused.
fn decode(segment: &str, what: &str) -> Result<String, ErrorBody> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = after.get(..2).and_then(|pair| Some((hex(pair[0])?, hex(pair[1])?)));
        let (high, low) =
            digits.ok_or_else(|| bad(format!("the {what} has a % without two hex digits")))?;
        bytes.push(high << 4 | low);
        rest = &after[2..];
    }
    let text = String::from_utf8(bytes).map_err(|_| bad(format!("the {what} is not UTF-8")))?;
    if text.is_empty() {
        return Err(bad(format!("the {what} is empty")));
    }
    if text.chars().any(char::is_control) {
        return Err(bad(format!("the {what} has control characters")));
    }
    Ok(text)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// The names and values of a query that are not yet taken.
struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    fn parse(query: Option<&'a str>) -> Result<Query<'a>, ErrorBody> {
        let pairs = query.unwrap_or("").split('&').filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| {
                pair.split_once('=')
                    .ok_or_else(|| bad(format!("the query has {pair:?} without a value")))
            })
            .collect::<Result<_, _>>()
            .map(Query)
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>, ErrorBody> {
        let Some(at) = self.0.iter().position(|(key, _)| *key == name) else { return Ok(None) };
        let (_, value) = self.0.swap_remove(at);
        // `parse` would accept a sign, which nobody who counts sends.
        let plain = value.bytes().all(|byte| byte.is_ascii_digit());
        value
            .parse()
            .ok()
            .filter(|_| plain)
            .map(Some)
            .ok_or_else(|| bad(format!("{name} is {value:?}, not a number in range")))
    }

    /// A name that is 0 or 1, or not there.
    fn flag(&mut self, name: &str) -> Result<bool, ErrorBody> {
        match self.number::<u8>(name)? {
            None | Some(0) => Ok(false),
            Some(1) => Ok(true),
            Some(other) => Err(bad(format!("{name} is {other}, not 0 or 1"))),
        }
    }

    /// All values of a name, which may be none.
    fn names(&mut self, name: &str) -> Result<Vec<String>, ErrorBody> {
        let (own, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.0).into_iter().partition(|(key, _)| *key == name);
        self.0 = others;
        if own.len() > HINTED_NAMES_MAX {
            return Err(bad(format!("{name} is given more than {HINTED_NAMES_MAX} times")));
        }
        let decoded = own.into_iter().map(|(_, value)| decode(value, name));
        decoded
            .map(|value| {
                let value = value?;
                let short = value.len() <= HINTED_BYTES_MAX;
                short.then_some(value).ok_or_else(|| bad(format!("a {name} is too long")))
            })
            .collect()
    }

    fn options(&mut self) -> Result<Options, ErrorBody> {
        Ok(Options { deep: self.flag("deep")?, repair: self.flag("repair")? })
    }

    fn end(self, route: Route) -> Result<Route, ErrorBody> {
        match self.0.first() {
            None => Ok(route),
            Some((name, _)) => Err(bad(format!("{name:?} is not known here, or is given twice"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(uri: &str) -> Result<Route, ErrorBody> {
        Route::parse(&Method::GET, &uri.parse().unwrap())
    }

    fn post(uri: &str) -> Result<Route, ErrorBody> {
        Route::parse(&Method::POST, &uri.parse().unwrap())
    }

    #[test]
    fn every_path_that_the_contract_names_is_understood() {
        let id = || "codex/a".to_owned();
        assert_eq!(get("/v1/status"), Ok(Route::Status));
        assert_eq!(get("/v1/sessions"), Ok(Route::List));
        assert_eq!(get("/v1/events"), Ok(Route::Events));
        assert_eq!(get("/metrics"), Ok(Route::Metrics));
        assert_eq!(post("/v1/flush"), Ok(Route::Flush { id: None }));
        assert_eq!(post("/v1/sessions/codex%2Fa/flush"), Ok(Route::Flush { id: Some(id()) }));
        assert_eq!(post("/v1/sessions/codex%2Fa/stop"), Ok(Route::Stop { id: id() }));
        assert_eq!(post("/v1/sessions/codex%2fa/start"), Ok(Route::Start { id: id() }));
        assert_eq!(
            get("/v1/sessions/codex/a/content?tail=3&generation=2"),
            Ok(Route::Content { id: id(), generation: Some(2), tail: Some(3) })
        );
        assert_eq!(
            post("/v1/sessions/codex%2Fa/compact?keep_tail=4"),
            Ok(Route::Compact { id: id(), keep_tail: 4 })
        );
        let hint = |sessions: &[&str], paths: &[&str]| {
            let sessions = sessions.iter().map(|&session| session.to_owned()).collect();
            Ok(Route::Hint(Hint { sessions, paths: paths.iter().map(PathBuf::from).collect() }))
        };
        assert_eq!(post("/v1/hint"), hint(&[], &[]));
        let uri = route::hint(["a&b", "c"].into_iter(), ["/x y/é=.jsonl"].into_iter());
        assert_eq!(post(&uri), hint(&["a&b", "c"], &["/x y/é=.jsonl"]));
        let options = Options { deep: true, repair: false };
        assert_eq!(post("/v1/verify?deep=1"), Ok(Route::Verify { id: None, options }));
        let options = Options { deep: false, repair: true };
        assert_eq!(
            post("/v1/sessions/codex%2Fa/verify?repair=1&deep=0"),
            Ok(Route::Verify { id: Some(id()), options })
        );
    }

    #[test]
    fn a_session_survives_the_way_through_a_path() {
        for id in
            ["codex/x", "a~2", "a@0f0f0f0f", "openclaw/main__s%7Eb~3", "a b", "claude-code/é%2F?&#"]
        {
            let uri = route::session(id, route::STOP);
            assert_eq!(post(&uri), Ok(Route::Stop { id: id.to_owned() }), "{uri}");
        }
    }

    #[test]
    fn what_is_not_of_the_contract_is_refused_with_the_right_code() {
        let code = |result: Result<Route, ErrorBody>| result.unwrap_err().code;
        for uri in ["/", "/v1", "/v2/status", "/v1/sessions/", "/v1/sessions/a", "/v1/sessions/a/b"]
        {
            assert_eq!(code(get(uri)), ErrorCode::NoSuchRoute, "{uri}");
        }
        assert_eq!(code(post("/v1/verify?deep=2")), ErrorCode::BadRequest);
        let long = format!("/v1/hint?path={}", "a".repeat(HINTED_BYTES_MAX + 1));
        let many = format!("/v1/hint?{}", "session=a&".repeat(HINTED_NAMES_MAX + 1));
        for uri in [&long, &many, "/v1/hint?path=", "/v1/hint?path=%1B", "/v1/hint?cwd=%2F"] {
            assert_eq!(code(post(uri)), ErrorCode::BadRequest, "{uri}");
        }
        for uri in
            ["/v1/flush", "/v1/verify", "/v1/hint", "/v1/sessions/a/stop", "/v1/sessions/a/compact"]
        {
            assert_eq!(code(get(uri)), ErrorCode::MethodNotAllowed, "{uri}");
        }
        for uri in ["/v1/status", "/v1/events", "/metrics"] {
            assert_eq!(code(post(uri)), ErrorCode::MethodNotAllowed, "{uri}");
        }
        for uri in [
            "/v1/sessions//content",
            "/v1/sessions/a%2/content",
            "/v1/sessions/a%zz/content",
            "/v1/sessions/%FF/content",
            "/v1/sessions/a%00/content",
            "/v1/sessions/a/content?tail=-1",
            "/v1/sessions/a/content?tail=+1",
            "/v1/sessions/a/content?tail=",
            "/v1/sessions/a/content?tail",
            "/v1/sessions/a/content?tail=1&tail=2",
            "/v1/sessions/a/content?generation=99999999999",
            "/v1/sessions/a/content?from=1",
            "/v1/status?verbose=1",
        ] {
            assert_eq!(code(get(uri)), ErrorCode::BadRequest, "{uri}");
        }
    }

    #[test]
    fn only_a_newer_protocol_is_refused() {
        let check = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(PROTOCOL_HEADER, value.parse().unwrap());
            check_protocol(&headers)
        };
        assert_eq!(check_protocol(&HeaderMap::new()), Ok(()));
        assert_eq!(check(&PROTOCOL.to_string()), Ok(()));
        assert_eq!(check("0"), Ok(()));
        assert!(check(&(PROTOCOL + 1).to_string()).unwrap_err().hint.is_some());
        assert_eq!(check("one").unwrap_err().code, ErrorCode::BadRequest);
    }
}
