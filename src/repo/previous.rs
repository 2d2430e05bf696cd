//! The previous snapshot's tree, consulted beside the new one: walked in step with it, or asked for paths at random.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::entry::{Entry, EntryKind, Layout, Order, tree_order};
use crate::error::{Context as _, Error, Kind, Result};
use crate::repo::Inner;
use crate::repo::format::ChunkId;
use crate::repo::nodes::NodeReader;
use crate::repo::packs::PackNo;
use crate::repo::snapshot::TreeRoot;
use crate::repo::tree::{Chunk, Content, NodeRef, PackedChunks, Place, Record};

/// The tree of one source in the previous snapshot.
pub struct PreviousTree {
    pub nodes: NodeReader,
    pub refs: Vec<NodeRef<PackNo>>,
    /// Nodes of entries (not of stretches) that were read and found whole, by id: only these may be named again.
    pub entry_nodes: HashMap<ChunkId, Place<PackNo>>,
    /// Packs with nodes that could not be read.
    pub damaged: Vec<(PackNo, Error)>,
    next: usize,
    /// Files of the walk that are not passed yet.
    ahead: VecDeque<PreviousFile>,
    /// All files, where paths come in any order.
    by_path: HashMap<Vec<u8>, PackedFile>,
    order: Order,
}

/// A file of the previous snapshot.
pub struct PreviousFile {
    path: Vec<u8>,
    pub stamp: Vec<u8>,
    pub size: u64,
    pub layout: Layout,
    pub content: Content<PackNo>,
    /// Where its stretches begin in the list of nodes.
    pub first_node: usize,
}

/// The same in little memory.
struct PackedFile {
    stamp: Box<[u8]>,
    size: u64,
    layout: Layout,
    content: PackedContent,
    first_node: usize,
}

enum PackedContent {
    Inline(PackedChunks<PackNo>),
    Stretches(u64),
}

impl PreviousTree {
    /// Opens the tree for questions in this order. With [`Order::Any`] all its entries are read now.
    ///
    /// # Errors
    /// `Damaged` when the list of its nodes cannot be read; single damaged nodes are passed over and kept in `damaged`.
    pub fn open(inner: &Arc<Inner>, root: &TreeRoot, order: Order) -> Result<Self> {
        let mut nodes = NodeReader::new(inner)?;
        let refs = nodes.leaves(&root.bytes()?, root.depth)?;
        let mut tree = Self {
            nodes,
            refs,
            entry_nodes: HashMap::new(),
            damaged: Vec::new(),
            next: 0,
            ahead: VecDeque::new(),
            by_path: HashMap::new(),
            order,
        };
        if order == Order::Any {
            while tree.advance()? {
                while let Some(PreviousFile { path, stamp, size, layout, content, first_node }) = tree.ahead.pop_front() {
                    let content = match content {
                        Content::Inline(chunks) => PackedContent::Inline(PackedChunks::new(&chunks)),
                        Content::Stretches(count) => PackedContent::Stretches(count),
                        Content::None => continue,
                    };
                    tree.by_path.insert(path, PackedFile { stamp: stamp.into(), size, layout, content, first_node });
                }
            }
        }
        Ok(tree)
    }

    /// The file with this path. In tree order, the path comes after all asked for before; in any order, each path is asked for once.
    /// Damaged nodes are passed over.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn find(&mut self, path: &[u8]) -> Result<Option<PreviousFile>> {
        match self.order {
            Order::Tree => self.walk_to(path),
            Order::Any => self.take(path),
        }
    }

    fn take(&mut self, path: &[u8]) -> Result<Option<PreviousFile>> {
        let Some((path, PackedFile { stamp, size, layout, content, first_node })) = self.by_path.remove_entry(path) else {
            return Ok(None);
        };
        let content = match content {
            PackedContent::Inline(chunks) => Content::Inline(chunks.chunks().context(Kind::Bug, || "unpack a chunk list".into())?),
            PackedContent::Stretches(count) => Content::Stretches(count),
        };
        Ok(Some(PreviousFile { path, stamp: stamp.into_vec(), size, layout, content, first_node }))
    }

    fn walk_to(&mut self, path: &[u8]) -> Result<Option<PreviousFile>> {
        loop {
            while let Some(front) = self.ahead.front() {
                match tree_order(&front.path, path) {
                    std::cmp::Ordering::Less => {
                        self.ahead.pop_front();
                    }
                    std::cmp::Ordering::Equal => return Ok(self.ahead.pop_front()),
                    std::cmp::Ordering::Greater => return Ok(None),
                }
            }
            if !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// Takes in the files of the next node of entries; `false` at the end of the tree.
    fn advance(&mut self) -> Result<bool> {
        let Some(node) = self.refs.get(self.next).copied() else { return Ok(false) };
        let position = self.next;
        self.next += 1;
        if node.stretch {
            return Ok(true);
        }
        let records = match self.nodes.records(&node) {
            Ok(records) => records,
            Err(e) if e.kind() == Kind::Damaged => {
                self.damaged.push((node.place.pack, e));
                return Ok(true);
            }
            Err(e) => return Err(e),
        };
        self.entry_nodes.insert(node.id, node.place);
        for (number, record) in records.into_iter().enumerate() {
            let Record::Entry { entry: Entry { path, kind: EntryKind::File { size, layout }, stamp, .. }, content } = record else {
                continue;
            };
            let first_node = match &content {
                // Only the first entry of a node comes right after stretches.
                Content::Stretches(count) if number == 0 => usize::try_from(*count).ok().and_then(|c| position.checked_sub(c)),
                Content::Stretches(_) => None,
                _ => Some(position),
            };
            if let Some(first_node) = first_node {
                self.ahead.push_back(PreviousFile { path, stamp, size: size.unwrap_or(0), layout, content, first_node });
            }
        }
        Ok(true)
    }
}

impl NodeReader {
    /// The chunks of a stretch node.
    ///
    /// # Errors
    /// `Damaged` when it is not there or not what it should be.
    pub fn stretch(&mut self, node: &NodeRef<PackNo>) -> Result<Vec<Chunk<PackNo>>> {
        match self.records(node)?.pop() {
            Some(Record::Stretch(chunks)) => Ok(chunks),
            _ => Err(Error::new(Kind::Damaged, "a node of a tree is not the stretch that it should be")),
        }
    }
}
