// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lines, with writers that are told what to say.

use super::*;
use std::io::Read;
use std::sync::{Arc, Mutex};

/// Says what it was asked for, and answers with what is next.
struct Fake {
    name: &'static str,
    asked: Arc<Mutex<Vec<String>>>,
    answers: Vec<Result<(u64, By), &'static str>>,
    starts: Result<(), &'static str>,
}

impl Fake {
    fn say(&self, what: &str) {
        let mut asked = self.asked.lock().unwrap();
        asked.push(format!("{} {what}", self.name));
    }
}

impl Writer for Fake {
    fn names(&self) -> Vec<String> {
        self.name.split('+').map(str::to_owned).collect()
    }

    fn start(&mut self) -> io::Result<()> {
        self.say("start");
        self.starts.map_err(io::Error::other)
    }

    fn pages(&mut self, pages: &mut Pages) -> io::Result<By> {
        self.say("pages");
        let (page, by) = self.answers.remove(0).map_err(io::Error::other)?;
        pages.add(page << 12, page << 12);
        Ok(by)
    }

    fn stop(&mut self) -> io::Result<()> {
        self.say("stop");
        self.starts.map_err(io::Error::other)
    }
}

fn memory() -> Pages {
    Pages::none(std::iter::once(0..0x10_0000))
}

#[test]
fn each_writer_is_counted_and_all_of_them() {
    let asked = Arc::default();
    let fake = |name, answers| Fake {
        name,
        asked: Arc::clone(&asked),
        answers,
        starts: Ok(()),
    };
    let nobody = By::Nobody("it does not tell".to_owned());
    let mut file = tempfile::tempfile().unwrap();
    let mut log = DirtyLog::new(
        memory(),
        vec![
            Box::new(fake(
                "processors",
                vec![Ok((0, By::Kvm)), Ok((1, By::Kvm)), Ok((2, By::Kvm))],
            )),
            Box::new(fake(
                "disk+card",
                vec![Ok((9, By::Container)), Ok((1, By::Unit)), Ok((2, nobody))],
            )),
        ],
        Some(file.try_clone().unwrap()),
    );
    assert_eq!(log.obey("start"), "ok");
    assert_eq!(
        log.obey("pages"),
        "all=2 processors=1 vmm=unknown disk=1 disk.by=container card=1 card.by=container"
    );
    let mut bits = Vec::new();
    file.read_to_end(&mut bits).unwrap();
    assert_eq!(bits[..2], [1, 2]);
    assert_eq!(bits.len(), 32);
    // Not what was told before; one page once.
    assert_eq!(
        log.obey("pages"),
        "all=1 processors=1 vmm=unknown disk=1 disk.by=unit card=1 card.by=unit"
    );
    let none = "\"none: it does not tell\"";
    assert_eq!(
        log.obey("pages"),
        format!("all=256 processors=1 vmm=unknown disk=256 disk.by={none} card=256 card.by={none}")
    );
    assert_eq!(log.obey("stop"), "ok");
    let order = ["start", "pages", "pages", "pages", "stop"];
    let expected: Vec<_> = order
        .iter()
        .flat_map(|what| [format!("processors {what}"), format!("disk+card {what}")])
        .collect();
    assert_eq!(*asked.lock().unwrap(), expected);
}

#[test]
fn what_cannot_be_is_said() {
    let asked = Arc::default();
    let fake = |name, starts| {
        Box::new(Fake {
            name,
            asked: Arc::clone(&asked),
            answers: vec![Err("lost"), Ok((0, By::Kvm))],
            starts,
        })
    };
    let writers: Vec<Box<dyn Writer>> = vec![fake("one", Ok(())), fake("two", Err("no log"))];
    let mut log = DirtyLog::new(memory(), writers, None);
    let idle = "error: the log does not run: start it";
    assert_eq!(log.obey("pages"), idle);
    assert_eq!(log.obey("stop"), idle);
    assert_eq!(
        log.obey("begin"),
        "error: unknown command 'begin' (known: start, pages, stop)"
    );
    // What was started is stopped.
    assert_eq!(log.obey("start"), "error: two: no log");
    let said = std::mem::take(&mut *asked.lock().unwrap());
    assert_eq!(said, ["one start", "two start", "one stop"]);
    assert_eq!(log.obey("pages"), idle);

    // A bitmap that cannot be written: nothing is lost for the next question.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut log = DirtyLog::new(memory(), vec![fake("one", Ok(()))], Some(full));
    assert_eq!(log.obey("start"), "ok");
    assert_eq!(log.obey("start"), "error: the log runs already");
    assert!(log.obey("pages").contains("cannot write the bitmap: "));
    log.bitmap = None;
    assert_eq!(log.obey("pages"), "all=256 one=1 vmm=unknown");
}
