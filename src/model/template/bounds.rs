//! Bounds on what a chat template may spend: templates come from elsewhere, and a short one can ask for any amount of
//! time, memory or stack.
//!
//! The engine's fuel bounds steps, not what a step makes: `x ~ x` doubles a text in one. So before it is compiled a
//! template is rewritten: what makes a value passes the value through [`KEEP`], which weighs it; what goes over values
//! passes them through [`LOOK`]. Both take from a [`Budget`] that grows with the conversation. Texts and lists that are
//! multiplied or padded are weighed before they are made.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::machinery::ast::{self, BinOpKind, CallArg, Expr, Spanned, Stmt};
use minijinja::machinery::{self, CodeGenerator, Span, Token};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, StringInput, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Longest template, in bytes: Qwen's have 2 to 10 thousand.
pub(super) const MAX_SOURCE: usize = 1 << 16;
/// Tokens between two braces; each can be a level of the tree that the engine walks.
const MAX_TAG: usize = 2000;
/// Of lists and objects in each other.
const MAX_DEPTH: usize = 32;
/// A plain value, or an item's place in a list, in bytes.
const VALUE: u64 = 32;
/// Instructions: Qwen's templates spend under a hundred a message, which has 64 bytes and more.
const FUEL: u64 = 1_000_000;
const FUEL_PER_BYTE: u64 = 150;
/// The engine walks trees by calling itself.
const STACK: usize = 64 << 20;

/// Functions that a template cannot name.
const KEEP: &str = "finch keep";
const LOOK: &str = "finch look";
const STORE: &str = "finch store";
const REPEAT: &str = "finch repeat";

/// Filters that pad or join without bound and that no chat template needs.
const WITHOUT: [&str; 6] = ["batch", "slice", "format", "pprint", "chain", "zip"];

/// What a rendering may still spend, in bytes.
struct Budget {
    /// On values that it makes.
    made: AtomicU64,
    /// On going over values.
    seen: AtomicU64,
    /// On one text.
    text: u64,
}

impl Budget {
    /// For a conversation of so many bytes.
    fn new(input: usize) -> Arc<Budget> {
        let input = input as u64;
        Arc::new(Budget {
            made: AtomicU64::new((4 << 20) + 32 * input),
            seen: AtomicU64::new((256 << 20) + 1024 * input),
            text: (1 << 18) + 4 * input,
        })
    }

    fn take(from: &AtomicU64, bytes: u64) -> Result<(), Error> {
        let left = from.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        left.map(drop).map_err(|_| too_much("it makes or compares more text than any conversation needs"))
    }

    fn text(&self, bytes: u64) -> Result<(), Error> {
        if bytes > self.text {
            return Err(too_much("it makes a text that is longer than any conversation needs"));
        }
        Self::take(&self.made, VALUE + bytes)
    }

    /// Takes what `value` weighs, with everything in it.
    fn weigh(&self, from: &AtomicU64, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::String => Self::take(from, VALUE + value.as_str().map_or(0, str::len) as u64),
            ValueKind::Bytes => Self::take(from, VALUE + value.as_bytes().map_or(0, <[u8]>::len) as u64),
            // Made as it is read: its items are made then.
            ValueKind::Iterable => match value.len() {
                Some(items) => Self::take(from, VALUE * (1 + items as u64)),
                None => Err(too_much("it makes a list without end")),
            },
            ValueKind::Seq | ValueKind::Map if depth == MAX_DEPTH => Err(too_much("its lists are nested too deeply")),
            ValueKind::Seq | ValueKind::Map => {
                Self::take(from, VALUE)?;
                let is_map = value.kind() == ValueKind::Map;
                for item in value.try_iter()? {
                    self.weigh(from, &item, depth + 1)?;
                    if is_map {
                        self.weigh(from, &value.get_item(&item)?, depth + 1)?;
                    }
                }
                Ok(())
            }
            _ => Self::take(from, VALUE),
        }
    }

    fn keep(&self, value: &Value) -> Result<(), Error> {
        match value.as_str() {
            Some(text) => self.text(text.len() as u64),
            None => self.weigh(&self.made, value, 0),
        }
    }

    /// `value` with `pieces` of `size` bytes more, before it is made.
    fn grow(&self, value: u64, pieces: u64, size: u64) -> Result<(), Error> {
        self.text(value.saturating_add(pieces.saturating_mul(size)))
    }
}

fn too_much(what: &str) -> Error {
    Error::new(ErrorKind::OutOfFuel, what.to_string())
}

/// Runs `work` where the depth of a tree does no harm.
pub(super) fn deep<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("template".to_string()).stack_size(STACK);
        match thread.spawn_scoped(scope, work)?.join() {
            Ok(result) => Ok(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Renders `source` over `root`, for a conversation of `input` bytes; without a root it is only compiled. Errors name
/// the line.
pub(super) fn render(
    env: &Environment<'static>,
    syntax: &SyntaxConfig,
    source: &str,
    root: Option<Value>,
    input: usize,
) -> Result<String, Error> {
    check_tags(source, syntax)?;
    let tree = statement(&machinery::parse(source, super::NAME, syntax.clone())?)?;
    let mut code = CodeGenerator::new(super::NAME, source);
    code.compile_stmt(&tree);
    let (instructions, blocks) = code.finish();
    let Some(root) = root else { return Ok(String::new()) };
    let mut env = bounded(env, Budget::new(input));
    env.set_fuel(Some(FUEL + FUEL_PER_BYTE * input as u64));
    let mut text = String::new();
    machinery::eval(
        &env,
        &instructions,
        root,
        &blocks,
        &mut machinery::make_string_output(&mut text),
        AutoEscape::None,
    )?;
    Ok(text)
}

fn check_tags(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    if source.len() > MAX_SOURCE {
        return Err(too_much(&format!("it has {} bytes, more than {MAX_SOURCE}", source.len())));
    }
    let mut tokens = 0;
    for token in machinery::tokenize(source, false, syntax.clone()) {
        match token?.0 {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => tokens = 0,
            _ => tokens += 1,
        }
        if tokens > MAX_TAG {
            return Err(too_much(&format!("it has more than {MAX_TAG} words between two braces")));
        }
    }
    Ok(())
}

/// The environment of one rendering.
fn bounded(env: &Environment<'static>, budget: Arc<Budget>) -> Environment<'static> {
    let mut env = env.clone();
    let with = || Arc::clone(&budget);
    let keep = with();
    env.add_function(KEEP, move |value: Value| keep.keep(&value).map(|()| value));
    let look = with();
    env.add_function(LOOK, move |value: Value| look.weigh(&look.seen, &value, 0).map(|()| value));
    let store = with();
    env.add_function(STORE, move |value: Value| {
        refuse_namespaces(&value, 0)?;
        store.keep(&value).map(|()| value)
    });
    let repeat = with();
    env.add_function(REPEAT, move |left: Value, right: Value| multiply(&repeat, left, right));
    let emitted = with();
    env.set_formatter(move |out, _, value| {
        if value.as_str().is_none() {
            emitted.weigh(&emitted.made, value, 0)?;
            refuse_namespaces(value, 0)?;
        }
        let text = value.as_str().map_or_else(|| value.to_string().into(), std::borrow::Cow::Borrowed);
        emitted.text(text.len() as u64)?;
        out.write_str(&text).map_err(Error::from)
    });

    WITHOUT.iter().for_each(|name| env.remove_filter(name));
    env.remove_global("debug");
    let (replacing, joining, indenting) = (with(), with(), with());
    env.add_filter("replace", move |value: String, from: String, to: String| {
        replacing.grow(value.len() as u64, value.matches(&*from).count() as u64, to.len() as u64)?;
        Ok::<_, Error>(value.replace(&from, &to))
    });
    env.add_filter(
        "join",
        move |state: &mut State, value: &Value, by: Option<StringInput<'_>>, of: Option<&str>, more: Kwargs| {
            let size = by.as_ref().map_or(0, |by| by.as_str().len());
            joining.grow(0, value.len().unwrap_or(0) as u64, size as u64)?;
            minijinja::filters::join(state, value, by, of, more)
        },
    );
    env.add_filter(
        "indent",
        move |value: StringInput<'_>, width: Option<usize>, first: Option<bool>, blank: Option<bool>, more: Kwargs| {
            let named: Option<usize> = more.get("width")?;
            let width = width.or(named).unwrap_or(4);
            let lines = 1 + value.as_str().matches('\n').count();
            indenting.grow(value.as_str().len() as u64, lines as u64, width as u64)?;
            minijinja::filters::indent(value, Some(width), first, blank, more)
        },
    );
    env.add_filter("tojson", |value: &Value, indent: Option<Value>, more: Kwargs| {
        let named: Option<Value> = more.get("indent")?;
        if indent.as_ref().or(named.as_ref()).and_then(Value::as_i64).is_some_and(|width| width > 16) {
            return Err(too_much("tojson indents by more than 16"));
        }
        minijinja::filters::tojson(value, indent, more)
    });
    let methods = with();
    env.set_unknown_method_callback(move |state, value, method, args| {
        match (method, value.as_str(), args) {
            ("format", Some(_), _) => return Err(Error::from(ErrorKind::UnknownMethod)),
            ("replace", Some(text), [from, to, ..]) => {
                let (from, to) = (from.as_str().unwrap_or_default(), to.as_str().unwrap_or_default());
                methods.grow(text.len() as u64, text.matches(from).count() as u64, to.len() as u64)?;
            }
            ("join", Some(by), [list, ..]) => methods.grow(0, list.len().unwrap_or(0) as u64, by.len() as u64)?,
            _ => {}
        }
        unknown_method_callback(state, value, method, args)
    });
    env
}

/// A namespace is the one thing that could hold itself.
fn refuse_namespaces(value: &Value, depth: usize) -> Result<(), Error> {
    let Some(object) = value.as_object().filter(|_| depth < MAX_DEPTH) else { return Ok(()) };
    if object.type_name().ends_with("Namespace") {
        return Err(Error::new(ErrorKind::InvalidOperation, "a namespace can be neither stored nor printed"));
    }
    match value.kind() {
        ValueKind::Seq => value.try_iter()?.try_for_each(|item| refuse_namespaces(&item, depth + 1)),
        ValueKind::Map => value.try_iter()?.try_for_each(|key| refuse_namespaces(&value.get_item(&key)?, depth + 1)),
        _ => Ok(()),
    }
}

/// `*`, of numbers or of a text and a number.
fn multiply(budget: &Budget, left: Value, right: Value) -> Result<Value, Error> {
    let invalid = |what: &str| Err(Error::new(ErrorKind::InvalidOperation, what.to_string()));
    let text = left.as_str().map(|text| (text, &right)).or_else(|| right.as_str().map(|text| (text, &left)));
    if let Some((text, times)) = text {
        let Some(times) = times.as_i64() else { return invalid("a text can be multiplied by a whole number only") };
        let times = times.max(0) as u64;
        budget.grow(0, times, text.len() as u64)?;
        return Ok(Value::from(text.repeat(times as usize)));
    }
    if let (Some(a), Some(b)) = (left.as_i64(), right.as_i64()) {
        return a.checked_mul(b).map_or_else(|| invalid("a product is too large"), |product| Ok(Value::from(product)));
    }
    match (f64::try_from(left), f64::try_from(right)) {
        (Ok(a), Ok(b)) => Ok(Value::from(a * b)),
        _ => invalid("only numbers can be multiplied"),
    }
}

fn node<T>(inner: T, span: Span) -> Spanned<T> {
    Spanned::new(inner, span)
}

/// A call of one of the functions above.
fn call<'a>(name: &'a str, args: Vec<Expr<'a>>, span: Span) -> Expr<'a> {
    let expr = Expr::Var(node(ast::Var { id: name }, span));
    Expr::Call(node(ast::Call { expr, args: args.into_iter().map(CallArg::Pos).collect() }, span))
}

fn keep(expr: Expr<'_>) -> Expr<'_> {
    let span = expr.span();
    call(KEEP, vec![expr], span)
}

fn look<'a>(expr: &Expr<'a>) -> Result<Expr<'a>, Error> {
    Ok(call(LOOK, vec![expression(expr)?], expr.span()))
}

fn refused(what: &str, span: Span) -> Error {
    let line = span.start_line;
    Error::new(ErrorKind::SyntaxError, format!("finch runs no templates with {what} (line {line})"))
}

fn statements<'a>(all: &[Stmt<'a>]) -> Result<Vec<Stmt<'a>>, Error> {
    all.iter().map(statement).collect()
}

/// The statement with everything in it rewritten.
fn statement<'a>(stmt: &Stmt<'a>) -> Result<Stmt<'a>, Error> {
    Ok(match stmt {
        Stmt::Template(s) => Stmt::Template(node(ast::Template { children: statements(&s.children)? }, s.span())),
        Stmt::EmitExpr(s) => Stmt::EmitExpr(node(ast::EmitExpr { expr: expression(&s.expr)? }, s.span())),
        Stmt::EmitRaw(s) => {
            // Text between the tags is printed, and weighed, as any other.
            let expr = Expr::Const(node(ast::Const { value: Value::from(s.raw) }, s.span()));
            Stmt::EmitExpr(node(ast::EmitExpr { expr }, s.span()))
        }
        Stmt::ForLoop(s) => {
            let body = ast::ForLoop {
                target: target(&s.target)?,
                iter: expression(&s.iter)?,
                filter_expr: s.filter_expr.as_ref().map(expression).transpose()?,
                recursive: s.recursive,
                body: statements(&s.body)?,
                else_body: statements(&s.else_body)?,
            };
            Stmt::ForLoop(node(body, s.span()))
        }
        Stmt::IfCond(s) => {
            let (true_body, false_body) = (statements(&s.true_body)?, statements(&s.false_body)?);
            Stmt::IfCond(node(ast::IfCond { expr: expression(&s.expr)?, true_body, false_body }, s.span()))
        }
        Stmt::WithBlock(s) => {
            let pairs = s.assignments.iter().map(|(to, value)| Ok((target(to)?, expression(value)?)));
            let assignments = pairs.collect::<Result<Vec<_>, Error>>()?;
            Stmt::WithBlock(node(ast::WithBlock { assignments, body: statements(&s.body)? }, s.span()))
        }
        Stmt::Set(s) => {
            let value = expression(&s.expr)?;
            let expr = match &s.target {
                Expr::Var(_) => value,
                _ => call(STORE, vec![value], s.span()),
            };
            Stmt::Set(node(ast::Set { target: target(&s.target)?, expr }, s.span()))
        }
        Stmt::SetBlock(s) if s.filter.is_none() => {
            let block = ast::SetBlock { target: target(&s.target)?, filter: None, body: statements(&s.body)? };
            Stmt::SetBlock(node(block, s.span()))
        }
        Stmt::Macro(s) => Stmt::Macro(node(
            ast::Macro {
                name: s.name,
                args: s.args.iter().map(target).collect::<Result<_, _>>()?,
                defaults: expressions(&s.defaults)?,
                body: statements(&s.body)?,
            },
            s.span(),
        )),
        Stmt::Continue(s) => Stmt::Continue(node(ast::Continue, s.span())),
        Stmt::Break(s) => Stmt::Break(node(ast::Break, s.span())),
        Stmt::Include(s) => return Err(refused("include", s.span())),
        Stmt::Import(s) => return Err(refused("import", s.span())),
        Stmt::FromImport(s) => return Err(refused("import", s.span())),
        Stmt::Extends(s) => return Err(refused("extends", s.span())),
        Stmt::Block(s) => return Err(refused("blocks", s.span())),
        Stmt::AutoEscape(s) => return Err(refused("autoescape", s.span())),
        Stmt::FilterBlock(s) => return Err(refused("filter blocks", s.span())),
        Stmt::SetBlock(s) => return Err(refused("filters on a set block", s.span())),
        Stmt::CallBlock(s) => return Err(refused("call blocks", s.span())),
        Stmt::Do(s) => return Err(refused("do", s.span())),
    })
}

/// What is assigned to, which is no value.
fn target<'a>(expr: &Expr<'a>) -> Result<Expr<'a>, Error> {
    let targets = |items: &[Expr<'a>]| items.iter().map(target).collect::<Result<Vec<_>, Error>>();
    Ok(match expr {
        Expr::List(e) => Expr::List(node(ast::List { items: targets(&e.items)? }, e.span())),
        Expr::Tuple(e) => Expr::Tuple(node(ast::Tuple { items: targets(&e.items)? }, e.span())),
        Expr::GetAttr(e) => Expr::GetAttr(node(ast::GetAttr { expr: target(&e.expr)?, name: e.name }, e.span())),
        Expr::Var(e) => Expr::Var(node(ast::Var { id: e.id }, e.span())),
        other => return Err(refused("such an assignment", other.span())),
    })
}

fn expressions<'a>(all: &[Expr<'a>]) -> Result<Vec<Expr<'a>>, Error> {
    all.iter().map(expression).collect()
}

fn arguments<'a>(args: &[CallArg<'a>]) -> Result<Vec<CallArg<'a>>, Error> {
    let argument = |arg: &CallArg<'a>| {
        Ok(match arg {
            CallArg::Pos(e) => CallArg::Pos(expression(e)?),
            CallArg::Kwarg(name, e) => CallArg::Kwarg(name, expression(e)?),
            CallArg::PosSplat(e) => CallArg::PosSplat(expression(e)?),
            CallArg::KwargSplat(e) => CallArg::KwargSplat(expression(e)?),
        })
    };
    args.iter().map(argument).collect()
}

/// The expression with every value that it makes or compares weighed.
fn expression<'a>(expr: &Expr<'a>) -> Result<Expr<'a>, Error> {
    let optional = |e: &Option<Expr<'a>>| e.as_ref().map(expression).transpose();
    Ok(match expr {
        Expr::Var(e) => Expr::Var(node(ast::Var { id: e.id }, e.span())),
        Expr::Const(e) => Expr::Const(node(ast::Const { value: e.value.clone() }, e.span())),
        Expr::Slice(e) => {
            let (start, stop, step) = (optional(&e.start)?, optional(&e.stop)?, optional(&e.step)?);
            keep(Expr::Slice(node(ast::Slice { expr: expression(&e.expr)?, start, stop, step }, e.span())))
        }
        Expr::UnaryOp(e) => {
            let not = matches!(e.op, ast::UnaryOpKind::Not);
            let op = if not { ast::UnaryOpKind::Not } else { ast::UnaryOpKind::Neg };
            Expr::UnaryOp(node(ast::UnaryOp { op, expr: expression(&e.expr)? }, e.span()))
        }
        Expr::BinOp(e) => binary(e)?,
        Expr::Compare(e) => {
            let ops = e.ops.iter().map(|part| Ok(ast::CompareOp { op: part.op, expr: look(&part.expr)? }));
            let ops = ops.collect::<Result<Vec<_>, Error>>()?;
            Expr::Compare(node(ast::Compare { expr: look(&e.expr)?, ops }, e.span()))
        }
        Expr::IfExpr(e) => {
            let (test_expr, true_expr) = (expression(&e.test_expr)?, expression(&e.true_expr)?);
            let false_expr = optional(&e.false_expr)?;
            Expr::IfExpr(node(ast::IfExpr { test_expr, true_expr, false_expr }, e.span()))
        }
        Expr::Filter(e) => {
            let filter = ast::Filter { name: e.name, expr: optional(&e.expr)?, args: arguments(&e.args)? };
            keep(Expr::Filter(node(filter, e.span())))
        }
        Expr::Test(e) => {
            let test = ast::Test { name: e.name, expr: expression(&e.expr)?, args: arguments(&e.args)? };
            Expr::Test(node(test, e.span()))
        }
        Expr::GetAttr(e) => Expr::GetAttr(node(ast::GetAttr { expr: expression(&e.expr)?, name: e.name }, e.span())),
        Expr::GetItem(e) => {
            let (expr, subscript_expr) = (expression(&e.expr)?, expression(&e.subscript_expr)?);
            Expr::GetItem(node(ast::GetItem { expr, subscript_expr }, e.span()))
        }
        Expr::Call(e) => {
            keep(Expr::Call(node(ast::Call { expr: expression(&e.expr)?, args: arguments(&e.args)? }, e.span())))
        }
        Expr::List(e) => keep(Expr::List(node(ast::List { items: expressions(&e.items)? }, e.span()))),
        Expr::Tuple(e) => keep(Expr::Tuple(node(ast::Tuple { items: expressions(&e.items)? }, e.span()))),
        Expr::Map(e) => {
            let (keys, values) = (expressions(&e.keys)?, expressions(&e.values)?);
            keep(Expr::Map(node(ast::Map { keys, values }, e.span())))
        }
    })
}

fn binary<'a>(e: &Spanned<ast::BinOp<'a>>) -> Result<Expr<'a>, Error> {
    let operation = |left, right| Expr::BinOp(node(ast::BinOp { op: e.op, left, right }, e.span()));
    Ok(match e.op {
        BinOpKind::ScAnd | BinOpKind::ScOr => operation(expression(&e.left)?, expression(&e.right)?),
        BinOpKind::Mul => call(REPEAT, vec![expression(&e.left)?, expression(&e.right)?], e.span()),
        // Both sides were weighed as they were made: together they are no more than twice what one may be.
        BinOpKind::Add | BinOpKind::Concat => keep(operation(expression(&e.left)?, expression(&e.right)?)),
        _ => operation(look(&e.left)?, look(&e.right)?),
    })
}
