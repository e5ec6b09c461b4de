"""What the two pages to chat say, in the language of the browser: English, or Chinese by the table here."""

from __future__ import annotations

CHINESE = {
    "API key": "API 密钥",
    "Clear": "清空",
    "Conversation": "对话",
    "Edit": "编辑",
    "Enter sends, Shift+Enter breaks the line": "回车发送，Shift+回车换行",
    "Max new tokens": "最多生成的 token 数",
    "Message": "消息",
    "Message (Enter sends, Shift+Enter breaks the line)": "消息（回车发送，Shift+回车换行）",
    "Messages": "消息列表",
    "Model": "模型",
    "Raw context": "原始上下文",
    "Regenerate": "重新生成",
    "Repetition penalty": "重复惩罚",
    "Send": "发送",
    "Stop": "停止",
    "Stopped": "已停止",
    "System message": "系统消息",
    "Temperature": "温度",
    "The API key is missing or wrong; type it above": "缺少 API 密钥或密钥有误；请在上方输入",
    "The server answers with {}": "服务器返回状态 {}",
    "The server cannot be reached": "无法连接服务器",
    "Thoughts": "思考过程",
    "Undo": "撤销",
    "Waiting for the model": "等待模型回答",
    "Write a message below.": "请在下方输入消息。",
    "You": "你",
    "Your message": "你的消息",
    "0 = all tokens": "0 = 全部 token",
    "0 = as many as there is room for": "0 = 剩余空间允许的数量",
    "0 = the likeliest token": "0 = 最可能的 token",
    "{} tokens": "{} 个 token",
    "{} tokens in {} s, {} a second": "{} 个 token，用时 {} 秒，每秒 {} 个",
}


def translated(language: str, text: str, *values: object) -> str:
    """A text in the language of a browser.

    Args:
        language: Its header ``Accept-Language``, or its beginning.
        text: A key of ``CHINESE``, or whatever the server says, which stays.
        *values: What stands for each ``{}``, if there are any.
    """
    found = CHINESE.get(text, text) if language.lower().startswith("zh") else text
    return found.format(*values) if values else found
