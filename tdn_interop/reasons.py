"""The one table of reasons: gRPC status, blame, retry advice, exit code and words for people.

Everything that tells anybody why something was refused reads this table: the gRPC status, the exit
code of the command line, `docs/reference/errors.md` and the enum `tdn.common.v1.ErrorReason`
(both generated, `make gen`). Numbers are permanent.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Blame(enum.StrEnum):
    """Whose fault a refusal is, seen from the side that asked."""

    REQUESTER = "requester"
    RESPONDER = "responder"
    PEER = "peer"
    HUB = "hub"
    NETWORK = "network"
    OPERATOR = "operator"
    NOBODY = "nobody"
    PRODUCT = "product"


class Retry(enum.StrEnum):
    """Whether the same request can succeed later without a change by anybody."""

    NO = "no"
    LATER = "later"
    NEW_SESSION = "new_session"


@dataclass(frozen=True, slots=True)
class ReasonSpec:
    """One row: `summary` and `advice` hold English and Chinese."""

    number: int
    status: str  # name of the gRPC status code; this module does not know gRPC
    blame: Blame
    retry: Retry
    exit_code: int
    summary: tuple[str, str]
    advice: tuple[str, str]


def _row(number: int, status: str, blame: Blame, retry: Retry, exit_code: int, *texts: str) -> ReasonSpec:
    en, zh, advice_en, advice_zh = texts
    return ReasonSpec(number, status, blame, retry, exit_code, (en, zh), (advice_en, advice_zh))


_B = Blame
_R = Retry


# Exit codes: 1 ran, and the answer is no; 2 usage; 3 configuration or input; 4 unreachable or timed out;
# 5 refused or no common suite; 6 a peer broke the protocol; 70 our bug.
# fmt: off
class Reason(enum.Enum):
    """Why something was refused; `Reason.X.name` goes on the wire, `Reason.X.value` is its row."""

    # -- identity and enrolment
    UNAUTHENTICATED = _row(1, "UNAUTHENTICATED", _B.PEER, _R.NO, 5,
        "The other side did not prove who it is.", "对方未能证明其身份。",
        "Check that its certificate is valid now and was issued by a hub of this mesh; enrol it again if not.", "检查其证书是否在有效期内并由本网络的枢纽签发，否则重新入网。")
    IDENTITY_MISMATCH = _row(2, "PERMISSION_DENIED", _B.PEER, _R.NO, 5,
        "The certificate and the claimed identity do not belong together.", "证书与声称的身份不一致。",
        "Compare the identity fingerprint with its operator out of band; do not retry before it fits.", "请通过线下渠道与对方核对身份指纹，一致之前不要重试。")
    SIGNATURE_INVALID = _row(3, "PERMISSION_DENIED", _B.PEER, _R.NO, 6,
        "A signature does not verify.", "签名验证失败。",
        "Ask the signer for a fresh statement; if it fails again, somebody on the way changes it.", "请签名方重新出具；若仍失败，说明传输途中被篡改。")
    E2E_AUTH_FAILED = _row(4, "UNAUTHENTICATED", _B.HUB, _R.NEW_SESSION, 6,
        "End-to-end protection failed: bytes were changed on the way.", "端到端保护校验失败：数据在途中被改动。",
        "Reconnect over another route and report the hubs of this one.", "请改用其他路由重连，并上报该路由上的枢纽。")
    TOKEN_INVALID = _row(5, "PERMISSION_DENIED", _B.REQUESTER, _R.NO, 5,
        "The enrolment token is unknown, used, expired or made for another node.", "入网令牌未知、已使用、已过期或属于其他节点。",
        "Ask the operator of the hub for a new token: tdn enrol invite NODE.", "请向枢纽运营方申请新令牌：tdn enrol invite NODE。")
    NOT_ENROLLED = _row(6, "FAILED_PRECONDITION", _B.OPERATOR, _R.NO, 3,
        "This node has no certificate yet.", "本节点尚未取得证书。",
        "Get a token from the hub and run: tdn enrol join TOKEN.", "向枢纽申请令牌后执行：tdn enrol join TOKEN。")
    CERTIFICATE_EXPIRED = _row(7, "UNAUTHENTICATED", _B.PEER, _R.NO, 5,
        "A certificate has expired.", "证书已过期。",
        "Renew it: tdn enrol join TOKEN with a fresh token.", "请用新令牌执行 tdn enrol join TOKEN 续期。")
    REVOKED = _row(8, "UNAUTHENTICATED", _B.PEER, _R.NO, 5,
        "The node has been revoked, for ever.", "该节点已被永久吊销。",
        "A revoked id never comes back: its operator enrols a new node under another id.", "已吊销的标识不可恢复，请其运营方以新标识重新入网。")
    STATUS_STALE = _row(9, "UNAVAILABLE", _B.HUB, _R.LATER, 4,
        "The newest list of revoked nodes is too old to begin a channel.", "吊销名单过旧，不能新建信道。",
        "See how old it is (tdn registry status), check the link to the hub and its link to the top, and compare the clocks.", "用 tdn registry status 查看名单时间，检查到枢纽及枢纽到顶级节点的链路，并核对时钟。")
    # -- session and channel
    UNSUPPORTED_VERSION = _row(10, "FAILED_PRECONDITION", _B.NOBODY, _R.NO, 5,
        "The two sides have no protocol version in common.", "双方没有共同的协议版本。",
        "Upgrade the older side; the versions offered are in the details.", "请升级较旧的一方，支持的版本见详情。")
    SESSION_UNKNOWN = _row(11, "NOT_FOUND", _B.PEER, _R.NEW_SESSION, 6,
        "The session to resume is not known here.", "要恢复的会话不存在。",
        "Open a new session; the peer has restarted or forgot the old one.", "请新建会话，对端已重启或会话已失效。")
    SESSION_CONFLICT = _row(12, "ALREADY_EXISTS", _B.PEER, _R.NEW_SESSION, 6,
        "The session id is in use by another node.", "会话标识已被其他节点占用。",
        "Open a session with a fresh random id.", "请使用新的随机会话标识。")
    SESSION_CLOSED = _row(13, "FAILED_PRECONDITION", _B.REQUESTER, _R.NEW_SESSION, 4,
        "The session has been closed.", "会话已关闭。",
        "Open a new session.", "请新建会话。")
    SESSION_EXPIRED = _row(14, "NOT_FOUND", _B.NETWORK, _R.NEW_SESSION, 4,
        "The session was without a connection for longer than its idle time.", "会话断开时间超过允许的空闲时间。",
        "Check the network, then start again.", "请检查网络后重新开始。")
    SEQ_GAP = _row(15, "INVALID_ARGUMENT", _B.PEER, _R.NEW_SESSION, 6,
        "A frame is missing before this one.", "该帧之前存在缺失的帧。",
        "Reconnect and resume; repeated gaps mean that a frame is dropped on purpose.", "请重连并恢复；反复出现说明有人故意丢帧。")
    SEQ_RANGE = _row(16, "OUT_OF_RANGE", _B.PEER, _R.NEW_SESSION, 6,
        "The peer speaks of a frame that was never sent.", "对端引用了从未发送的帧。",
        "Open a new session.", "请新建会话。")
    REPLAY = _row(17, "ALREADY_EXISTS", _B.PEER, _R.NO, 6,
        "A message was used a second time.", "消息被重复使用。",
        "Do not send it again.", "请勿再次发送。")
    CHUNK_META = _row(18, "INVALID_ARGUMENT", _B.PEER, _R.NO, 6,
        "The parts of a message contradict each other.", "消息分片之间相互矛盾。",
        "Report it to the vendor of the peer.", "请反馈给对端产品厂商。")
    TOO_LARGE = _row(19, "RESOURCE_EXHAUSTED", _B.REQUESTER, _R.NO, 6,
        "Something is larger than the advertised limit.", "内容超过公布的上限。",
        "Send smaller parts; the limit is in the details.", "请减小单次发送的大小，上限见详情。")
    FLOW_VIOLATION = _row(20, "RESOURCE_EXHAUSTED", _B.PEER, _R.NEW_SESSION, 6,
        "The peer sent more than its credit.", "对端发送的数据超过额度。",
        "Report it to the vendor of the peer.", "请反馈给对端产品厂商。")
    RESOURCE_EXHAUSTED = _row(21, "RESOURCE_EXHAUSTED", _B.RESPONDER, _R.LATER, 4,
        "The other side has no room left for this.", "对方资源已用尽。",
        "Try again later, or ask its operator to raise the limit.", "请稍后重试，或请其运营方提高上限。")
    DEADLINE = _row(22, "DEADLINE_EXCEEDED", _B.NETWORK, _R.LATER, 4,
        "The time ran out.", "已超时。",
        "Check that the other side runs and is reachable (tdn ping NODE), then try again.", "请确认对方在运行且可达（tdn ping NODE），然后重试。")
    UNREACHABLE = _row(23, "UNAVAILABLE", _B.NETWORK, _R.LATER, 4,
        "The other side cannot be reached.", "无法连接对方。",
        "Check that it runs, that its address in the configuration is right and that no firewall is between.", "请确认对方在运行、配置中的地址正确且没有防火墙阻隔。")
    UNEXPECTED_MESSAGE = _row(24, "FAILED_PRECONDITION", _B.PEER, _R.NO, 6,
        "A message came in a state in which it is not allowed.", "在不允许的状态下收到消息。",
        "Report it to the vendor of the peer; this run has ended.", "请反馈给对端产品厂商，本次运行已终止。")
    INVALID_REQUEST = _row(25, "INVALID_ARGUMENT", _B.REQUESTER, _R.NO, 6,
        "A message is malformed.", "消息格式不正确。",
        "Correct the field that the message names.", "请修正消息中指出的字段。")
    ABANDONED = _row(26, "CANCELLED", _B.NOBODY, _R.LATER, 4,
        "It was given up before the end.", "在完成之前已被放弃。",
        "If another node gave it up, ask its operator why; then start again.", "若由其他节点放弃，请向其运营方了解原因；然后重新开始。")
    KEY_CONFLICT = _row(27, "ALREADY_EXISTS", _B.PEER, _R.NO, 6,
        "The same id stands for something else already; the first stays.", "该标识已对应其他内容，以先到者为准。",
        "Start again: every command takes a fresh id.", "请重新执行命令，系统会使用新的标识。")
    RATE_LIMITED = _row(28, "RESOURCE_EXHAUSTED", _B.REQUESTER, _R.LATER, 4,
        "This was asked more often than the other side allows.", "请求过于频繁，超过对方允许的速率。",
        "Ask again after retry_after_ms, see the details; the limits are in [rates] of the other node.", "请在详情中 retry_after_ms 所示时间后重试；上限见对方节点配置的 [rates]。")
    DRAINING = _row(29, "UNAVAILABLE", _B.RESPONDER, _R.LATER, 4,
        "The other side is about to stop and takes nothing new.", "对方即将停机，不再接受新的请求。",
        "Nothing to do: it is asked again by itself, over another way or when it is back.", "无需处理：系统会自动改走其他路径，或待其恢复后重试。")
    # -- routing
    NO_ROUTE = _row(30, "NOT_FOUND", _B.REQUESTER, _R.LATER, 4,
        "There is no such node, or no way to it.", "节点不存在或没有可用路由。",
        "Check the spelling of the node id; ask the operator of the hub whether the node is enrolled and attached.", "请检查节点标识拼写，并向枢纽运营方确认该节点已入网并在线。")
    ROUTE_LOOP = _row(31, "FAILED_PRECONDITION", _B.HUB, _R.LATER, 4,
        "The route runs in a circle or is too long.", "路由成环或过长。",
        "Report it to the operator of the hub.", "请上报枢纽运营方。")
    ROUTE_INVALID = _row(32, "INVALID_ARGUMENT", _B.PEER, _R.NO, 6,
        "What a node tells of the nodes it leads to does not hold.", "节点通告的路由不成立。",
        "Compare the clocks of both nodes; if they agree, report it to the operator of the node.", "请核对双方时钟；若一致，请上报该节点的运营方。")
    # -- mailbox
    MAILBOX_FULL = _row(33, "RESOURCE_EXHAUSTED", _B.RESPONDER, _R.LATER, 4,
        "The mailbox takes no more letters.", "信箱已满，不再接收信件。",
        "Wait until the recipient has fetched its letters, or ask the operator of its hub why it does not.", "请等待接收方取走信件，或向其枢纽运营方了解原因。")
    LETTER_EXPIRED = _row(34, "FAILED_PRECONDITION", _B.REQUESTER, _R.NO, 5,
        "A letter is past its validity, or its validity is too long.", "信件已过有效期，或有效期过长。",
        "Send it again with a validity of at most 30 days; compare the clocks.", "请以不超过 30 天的有效期重新发送，并核对时钟。")
    # -- algorithm
    UNSUPPORTED_ALGO = _row(40, "FAILED_PRECONDITION", _B.NOBODY, _R.NO, 5,
        "The parties have no algorithm in common.", "各方没有共同支持的算法。",
        "Choose an algorithm that every party serves: tdn node check lists them.", "请选择各方均支持的算法：tdn node check 可查看。")
    UNSUPPORTED_PARAMS = _row(41, "FAILED_PRECONDITION", _B.NOBODY, _R.NO, 5,
        "The parties have no suite or parameter set in common.", "各方没有共同的算法套件或参数。",
        "Add a suite to the flow that every party serves.", "请在流程中加入各方均支持的套件。")
    HANDSHAKE_REFUSED = _row(42, "FAILED_PRECONDITION", _B.PEER, _R.NO, 6,
        "The peer chose something that nobody proposed.", "对端选择了未被提议的内容。",
        "Report it to the vendor of the peer.", "请反馈给对端产品厂商。")
    TRANSCRIPT_MISMATCH = _row(43, "FAILED_PRECONDITION", _B.PEER, _R.NO, 6,
        "The parties do not see the same agreement.", "各方看到的约定不一致。",
        "Run the job again; if it fails again, somebody edits proposals on the way.", "请重新运行；若仍失败，说明提议在途中被修改。")
    BAD_POINT = _row(44, "INVALID_ARGUMENT", _B.PEER, _R.NO, 6,
        "The peer sent a value that is not a safe group element.", "对端发送了不安全的群元素。",
        "Do not retry: the peer is broken or hostile.", "请勿重试：对端存在缺陷或恶意行为。")
    BATCH_ORDER = _row(45, "INVALID_ARGUMENT", _B.PEER, _R.NO, 6,
        "Batches came out of order.", "批次顺序错误。",
        "Report it to the vendor of the peer.", "请反馈给对端产品厂商。")
    COUNT_MISMATCH = _row(46, "INVALID_ARGUMENT", _B.PEER, _R.NO, 6,
        "A stated count and the content differ.", "声明的数量与内容不一致。",
        "Report it to the vendor of the peer.", "请反馈给对端产品厂商。")
    INVALID_ITEM = _row(47, "INVALID_ARGUMENT", _B.OPERATOR, _R.NO, 3,
        "An item cannot be used as a key.", "存在不可用作键的数据项。",
        "Correct the rows that the message counts, or change the normalisation of the flow.", "请修正消息所指的行，或调整流程中的规范化规则。")
    SEAL_BROKEN = _row(48, "INVALID_ARGUMENT", _B.PEER, _R.NO, 6,
        "A sealed value cannot be opened by its recipient.", "密封内容无法由接收方打开。",
        "Do not retry: a party sent wrong ciphertexts.", "请勿重试：有参与方发送了错误密文。")
    # -- jobs, resources, terms
    FLOW_INVALID = _row(60, "INVALID_ARGUMENT", _B.REQUESTER, _R.NO, 3,
        "The flow cannot be run as it is written.", "流程定义有误，无法运行。",
        "Correct the line that the message names.", "请修正消息指出的内容。")
    JOB_UNKNOWN = _row(61, "NOT_FOUND", _B.REQUESTER, _R.NO, 3,
        "There is no such job on this node.", "本节点没有该作业。",
        "List the jobs: tdn job ls.", "查看作业列表：tdn job ls。")
    STATE_CONFLICT = _row(62, "FAILED_PRECONDITION", _B.REQUESTER, _R.NO, 5,
        "The object is not in a state in which this is possible.", "当前状态不允许该操作。",
        "Look at the state that the message names; of a job: tdn job show JOB.", "请查看消息所指对象的状态；作业可用 tdn job show JOB 查看。")
    STALE = _row(63, "FAILED_PRECONDITION", _B.PEER, _R.NO, 6,
        "The message belongs to an older epoch.", "消息属于较旧的轮次。",
        "Nothing to do: the newer run goes on.", "无需处理，新一轮仍在进行。")
    DIGEST_MISMATCH = _row(64, "FAILED_PRECONDITION", _B.OPERATOR, _R.NO, 3,
        "The content is not what was registered or agreed.", "内容与登记或约定的不一致。",
        "Register the new content as a new version: tdn resource register.", "请将新内容登记为新版本：tdn resource register。")
    POLICY_DENIED = _row(65, "PERMISSION_DENIED", _B.RESPONDER, _R.NO, 5,
        "A party does not allow this.", "有参与方不允许此操作。",
        "Ask that party what it would allow.", "请与该参与方协商。")
    APPROVAL_REFUSED = _row(66, "PERMISSION_DENIED", _B.RESPONDER, _R.NO, 5,
        "A party refused the job.", "有参与方拒绝了该作业。",
        "Read its comment, change the terms and propose again.", "请阅读其意见，修改条款后重新提议。")
    RESULT_NOT_PERMITTED = _row(67, "PERMISSION_DENIED", _B.REQUESTER, _R.NO, 5,
        "A receiver of the result is not among the parties of the agreement.", "结果接收方不在约定的参与方之中。",
        "Name it as a party of the flow, so that everybody approves it.", "请将其列为流程参与方，以便各方审批。")
    RESOURCE_UNKNOWN = _row(68, "NOT_FOUND", _B.REQUESTER, _R.NO, 3,
        "There is no such resource, or it may not be used for this.", "资源不存在或不可用于此目的。",
        "Ask its owner for the id: tdn resource ls on the owner's node.", "请向其所有方确认资源标识：在其节点执行 tdn resource ls。")
    ALREADY_EXISTS = _row(69, "ALREADY_EXISTS", _B.REQUESTER, _R.NO, 5,
        "Something else has this name already.", "该名称已被占用。",
        "Choose another name.", "请更换名称。")
    INPUT_INVALID = _row(70, "INVALID_ARGUMENT", _B.OPERATOR, _R.NO, 3,
        "A file cannot be used as it was given.", "文件无法按指定方式使用。",
        "Correct what the message names; for a table check encoding, delimiter and column names, too.", "请修正消息所指的问题；若为数据表，请一并检查编码、分隔符和列名。")
    EMPTY_SET = _row(71, "FAILED_PRECONDITION", _B.OPERATOR, _R.NO, 3,
        "An input has no usable row.", "输入中没有可用的行。",
        "Check the key columns; an empty key is not usable.", "请检查键列；空键不可用。")
    OUTPUT_EXISTS = _row(72, "ALREADY_EXISTS", _B.OPERATOR, _R.NO, 3,
        "The output file exists already.", "输出文件已存在。",
        "Choose another path or move the file away; nothing was overwritten.", "请更换路径或移走该文件，未覆盖任何内容。")
    PARTY_LOST = _row(73, "UNAVAILABLE", _B.NETWORK, _R.LATER, 4,
        "A party of the job cannot be reached any more.", "作业的某一参与方已失联。",
        "Check that it runs (tdn ping NODE), then run the job again.", "请确认其在运行（tdn ping NODE），然后重新运行作业。")
    JOB_CANCELLED = _row(74, "CANCELLED", _B.NOBODY, _R.NO, 1,
        "The job was cancelled.", "作业已取消。",
        "Run it again when everybody agrees.", "各方同意后可重新运行。")
    TRANSFER_UNKNOWN = _row(75, "NOT_FOUND", _B.REQUESTER, _R.NO, 3,
        "There is no such transfer on this node, or it has ended.", "本节点没有该传输，或该传输已结束。",
        "List the transfers: tdn channel ls.", "查看传输列表：tdn channel ls。")
    # -- evidence
    EVIDENCE_BROKEN = _row(80, "DATA_LOSS", _B.RESPONDER, _R.NO, 1,
        "The evidence does not prove what it claims.", "存证无法证明其声称的内容。",
        "Ask the parties for the original bundle; do not settle on this one.", "请向参与方索取原始存证包，不要以此结算。")
    EQUIVOCATION = _row(81, "DATA_LOSS", _B.HUB, _R.NO, 1,
        "A log shows different histories to different readers.", "同一日志向不同读者展示了不同的历史。",
        "Keep both heads and report the operator of the log.", "请保留两个树头并上报日志运营方。")
    RECEIPT_MISSING = _row(82, "UNAVAILABLE", _B.RESPONDER, _R.LATER, 4,
        "A confirmation that the evidence needs has not come.", "存证所需的确认尚未收到。",
        "Wait a little and ask again; then check that every party and its hub run (tdn ping NODE).", "请稍后重试，并确认各参与方及其枢纽在运行（tdn ping NODE）。")
    # -- configuration and the rest
    CONFIG_INVALID = _row(90, "FAILED_PRECONDITION", _B.OPERATOR, _R.NO, 3,
        "The configuration is wrong.", "配置有误。",
        "Correct the key that the message names; tdn node check shows the effective configuration.", "请修正消息指出的配置项；tdn node check 可查看生效配置。")
    NODE_DOWN = _row(91, "UNAVAILABLE", _B.OPERATOR, _R.LATER, 4,
        "The node does not run.", "节点未运行。",
        "Start it: tdn node run --config FILE.", "请启动节点：tdn node run --config FILE。")
    UNSUPPORTED = _row(92, "UNIMPLEMENTED", _B.REQUESTER, _R.NO, 5,
        "This node does not offer that.", "本节点不提供该功能。",
        "Ask a node with the right role; roles are in tdn node check.", "请联系具有相应角色的节点；角色可用 tdn node check 查看。")
    INTERNAL = _row(93, "INTERNAL", _B.PRODUCT, _R.NO, 70,
        "Something went wrong that should not.", "出现了不应发生的错误。",
        "Send the log line with this correlation id to the maintainers.", "请将带有该关联号的日志行发送给维护者。")
    STORE_UNAVAILABLE = _row(94, "UNAVAILABLE", _B.OPERATOR, _R.LATER, 3,
        "The database of the node cannot be used.", "节点数据库无法使用。",
        "Check that no other process uses it, that the disk has room and that the file may be written.", "请确认没有其他进程占用数据库、磁盘空间充足且文件可写。")
    LAB_UNKNOWN = _row(95, "NOT_FOUND", _B.OPERATOR, _R.NO, 3,
        "There is no such lab, or it has no such node.", "没有该实验网络，或其中没有该节点。",
        "See what is there: tdn lab status --dir DIR; make a lab: tdn lab up mini --dir DIR.", "查看：tdn lab status --dir DIR；新建：tdn lab up mini --dir DIR。")
    JOURNAL_BROKEN = _row(96, "DATA_LOSS", _B.OPERATOR, _R.NO, 3,
        "The journal of a job cannot be read; the job has failed.", "作业日志无法读取，作业已失败。",
        "Check the disk and the database of the node that noticed it, then run the job again.", "请检查发现该问题的节点的磁盘和数据库，然后重新运行作业。")
# fmt: on
